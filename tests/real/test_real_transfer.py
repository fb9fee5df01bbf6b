"""The real Finnish pair, end to end: the operators against float64 pinv for every new token, and the written model."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from saltlm_demo import finnish

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair():
    return finnish.finnish_pair()


@pytest.fixture(scope="module")
def problem(pair):
    return finnish.finnish_problem(pair)


@pytest.fixture
def one_thread():
    """For thousands of small decompositions: sharing each out costs more than it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sparsemax_supports(problem):
    """Support of each new token in float64, by sorting: the definition."""
    new = torch.nn.functional.normalize(problem.new_auxiliary.double(), dim=1)
    anchors = torch.nn.functional.normalize(problem.anchor_auxiliary.double(), dim=1)
    count = torch.arange(1, len(anchors) + 1, dtype=torch.float64)
    for block in new.split(256):
        ordered, order = (block @ anchors.T).sort(dim=1, descending=True)
        sizes = (1 + count * ordered > ordered.cumsum(1)).sum(1)
        for row, size in zip(order, sizes.tolist(), strict=True):
            yield row[:size]


def test_rows_equal_the_float64_pinv_for_all_new_tokens(problem, one_thread, capsys):
    from saltlm.operators.ops import STATUSES, salt_rows

    built = salt_rows(*problem.tensors)
    plm, anchor_plm, anchor_lm = (tensor.double() for tensor in problem.tensors[2:])
    sizes, off = [], []
    for token, support in enumerate(sparsemax_supports(problem)):
        # e pinv(P) L: the coefficients first, which is the same row without the E x D map.
        expected = (plm[token] @ torch.linalg.pinv(anchor_plm[support])) @ anchor_lm[support]
        off.append(float((built.rows[token].double() - expected).norm() / expected.norm()))
        sizes.append(len(support))
    off, sizes = np.array(off), np.array(sizes)
    status = built.status.numpy()
    table = [f"Finnish pair: {problem}", f"{'status':<16}{'tokens':>8}{'largest difference':>20}"]
    for code, name in enumerate(STATUSES):
        if (status == code).any():
            table.append(f"{name:<16}{(status == code).sum():>8,}{off[status == code].max():>20.1e}")
    quantiles = np.quantile(sizes, [0, 0.5, 0.95, 1]).astype(int)
    table.append("support sizes: smallest {:,}, median {:,}, 95 % up to {:,}, largest {:,}".format(*quantiles))
    with capsys.disabled():
        print("\n" + "\n".join(table))
    # A similarity within float32 rounding of the threshold may fall on either side of it; both are right answers.
    assert (np.abs(built.support_size.numpy() - sizes) <= 1).all()
    same = built.support_size.numpy() == sizes
    assert same.mean() > 0.999
    well = (status == STATUSES.index("full_rank")) & same
    assert well.mean() > 0.9 and off[well].max() < TOLERANCE
    assert built.rows.isfinite().all()


@pytest.fixture(scope="module")
def written(pair, tmp_path_factory):
    from saltlm import TransferConfig, transfer

    out = tmp_path_factory.mktemp("transfer") / "fi"
    return transfer(pair.source, pair.donor, pair.vectors, out, TransferConfig(method="salt", gguf_file=pair.gguf_file))


def test_stock_transformers_loads_the_result_and_shared_rows_are_bit_identical(pair, written):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from saltlm.model.checkpoint import load_source

    source = load_source(pair.source, gguf_file=pair.gguf_file)
    model = AutoModelForCausalLM.from_pretrained(written.out)
    tokenizer = AutoTokenizer.from_pretrained(written.out)
    rows = model.get_input_embeddings().weight.detach()
    assert len(tokenizer) == len(rows) == model.config.vocab_size and rows.isfinite().all()
    with safe_open(written.out / "provenance.safetensors", "np") as file:
        source_id = file.get_tensor("source_id")
    shared = np.flatnonzero(source_id >= 0)
    assert len(shared) > 3000
    expected = source.input_rows[torch.from_numpy(source_id[shared].astype(np.int64))]
    assert rows.dtype == expected.dtype and torch.equal(rows[torch.from_numpy(shared)], expected)
    # Every other tensor is the source's, bit for bit.
    original = AutoModelForCausalLM.from_pretrained(source.folder).state_dict()
    for name, tensor in model.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(tensor, original[name]), name
    ids = tokenizer("Hyvää huomenta!", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids).logits.shape[-1] == len(rows)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "Hyvää huomenta!"


def test_the_summary_accounts_for_every_row(written):
    summary = json.loads((written.out / "saltlm.json").read_text(encoding="utf-8"))
    assert sum(summary["counts"].values()) == len(written.origin)
    assert sum(entry["count"] for entry in summary["statuses"]) == len(written.origin)
    assert summary["counts"]["solved"] > 10_000 and 1 <= summary["support"]["min"] <= summary["support"]["median"]


# VmHWM and not ru_maxrss: the latter also counts the test run itself, whose memory the process has before its exec.
PEAK = """
import sys
from saltlm import TransferConfig, transfer
done = transfer(*sys.argv[1:5], TransferConfig(method="salt", gguf_file=sys.argv[5]))
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024)
"""


def test_peak_memory_is_at_most_two_gigabytes_and_twice_the_matrices(pair, tmp_path):
    arguments = [pair.source, pair.donor, pair.vectors, tmp_path / "out", pair.gguf_file]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    donor = json.loads((pair.donor / "config.json").read_text())["vocab_size"]
    matrices = 2 * 576 * (49_152 + donor) + 2 * 384 * donor
    print(f"peak memory {peak / 1e6:.0f} MB, embedding matrices {matrices / 1e6:.0f} MB")
    assert peak <= 2e9 + 2 * matrices
