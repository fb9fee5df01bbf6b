"""saltlm compared with published packages of other methods, on the real Finnish pair with the same inputs for both sides.

    python -m pip install --no-deps --only-binary :all: --target build/peers -r bench/requirements-peers.txt
    python bench/peers.py [focus omp subword] [--peers build/peers] [--sample 512] [--runs 3]

- ``focus``: deepfocus.FOCUS as a whole, given the same Finnish vectors by token instead of its fastText model. saltlm does
  the same work: matching of the vocabularies, sparsemax, rows. All tokens on both sides.
- ``omp``: tokensurgeon's pursuit (batch_omp, 64 picks, batches of 512 as in its command) on ``--sample`` tokens, and saltlm's
  on the same tokens. Its cost is a sum over batches, so the time for all tokens is scaled from the sample.
- ``subword``: tokensurgeon's mean of source pieces and saltlm's, for all new tokens. tokensurgeon segments with the source
  tokenizer, saltlm by byte covers.

All three check equality before they time anything. All sides use the same number of threads. Memory is the growth of the
process's peak during the first call. No bar.
"""

import argparse
import contextlib
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Timing, fetching, figure, forget_peak, peak_megabytes, record, timed

from saltlm import align
from saltlm.alignment.causal_tokenizer import causal_tokenizer
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.operators.ops import combine, sparsemax_support, support_lstsq
from saltlm.rows.assembly import Assembly
from saltlm.rows.methods import anchors_of
from saltlm.rows.methods.pursuit import pursue
from saltlm.vectors.auxiliary import load_auxiliary
from saltlm_demo.finnish import finnish_pair

PICKS, BATCH = 64, 512
TOLERANCE = 1e-4


class Inputs:
    """The Finnish pair, loaded once: the inputs of both sides.

    Attributes:
        source: the source model.
        tokenizer: the target tokenizer.
        alignment: of the two tokenizers.
        vectors: auxiliary vectors of the target tokens.
        rows: float32 [S, D], source rows.
        plm: float32 [T, E], PLM rows.
        anchors: int64 [A], target ids of the anchors.
        new: int64 [N], target ids of the tokens to build.
        anchor_rows: float32 [A, D], source rows of the anchors.
    """

    def __init__(self) -> None:
        pair = finnish_pair(fetching)
        self.source, donor = load_source(pair.source, gguf_file=pair.gguf_file), load_donor(pair.donor)
        self.tokenizer = causal_tokenizer(donor.tokenizer, self.source.tokenizer, chat_template="target")
        self.alignment = align(self.source.tokenizer, self.tokenizer)
        self.vectors = load_auxiliary(pair.vectors, self.alignment.target.words())
        self.rows = self.source.input_rows.float()
        self.plm = donor.input_rows.float()
        assembly = Assembly(self.source, self.alignment, self.alignment.target.size, None)
        self.anchors = torch.from_numpy(anchors_of(assembly, self.alignment, self.vectors, donor.input_rows))
        self.new = torch.from_numpy(np.flatnonzero(assembly.open & self.vectors.known.numpy()))
        self.anchor_rows = self.rows[torch.from_numpy(self.alignment.source_id.astype(np.int64))[self.anchors]]


def measured(job: Callable[[], object]) -> tuple[object, float]:
    """Run the job once; returns its result, and the growth of the peak memory in MB."""
    before = forget_peak()
    result = job()
    return result, peak_megabytes() - before


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Relative difference of each row of two matrices [n, D]: float64 [n]."""
    return (one.double() - other.double()).norm(dim=1) / other.double().norm(dim=1).clamp_min(1e-30)


def focus(inputs: Inputs, sample: int, runs: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare with deepfocus.FOCUS; returns table rows and notes."""
    # deepfocus imports fasttext, but does not use it when it is given vectors.
    sys.modules.setdefault("fasttext", types.ModuleType("fasttext"))
    from deepfocus import focus as deepfocus

    vocabulary = inputs.tokenizer.get_vocab()
    known = inputs.vectors.known
    table = {token: inputs.vectors.vectors[index].numpy() for token, index in vocabulary.items() if known[index]}
    deepfocus.load_target_token_embedding = lambda **options: table

    def peer() -> torch.Tensor:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return deepfocus.FOCUS(
                inputs.tokenizer,
                inputs.source.tokenizer,
                inputs.rows,
                auxiliary_embedding_mode="fasttext-wordlevel",
                language_identifier="given",
                verbosity="silent",
            )

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        overlap, _ = deepfocus.get_overlapping_tokens(inputs.tokenizer, inputs.source.tokenizer, False, True, False)
    # Rows are compared given the same anchors, because the packages differ in which tokens they call shared: deepfocus treats
    # some different tokens as equal, and matches special tokens by spelling.
    their_anchors = sorted(value.target.id for token, value in overlap.items() if token in table)
    ids = torch.tensor(their_anchors)
    first = {value.target.id: value.source[0].id for value in overlap.values()}
    sources = torch.tensor([first[index] for index in their_anchors])
    new = torch.tensor([index for token, index in vocabulary.items() if token in table and token not in overlap])
    built, grown_peer = measured(peer)
    support = sparsemax_support(inputs.vectors.vectors[new], inputs.vectors.vectors[ids])
    difference = relative_difference(combine(support, support.weights, inputs.rows[sources]), built[new])
    if float(difference.max()) > TOLERANCE:
        raise SystemExit(f"rows differ by {float(difference.max()):.1e} of their norm")

    def ours() -> torch.Tensor:
        alignment = align(inputs.source.tokenizer, inputs.tokenizer)
        assembly = Assembly(inputs.source, alignment, alignment.target.size, None)
        anchors = torch.from_numpy(anchors_of(assembly, alignment, inputs.vectors, None))
        tokens = torch.from_numpy(np.flatnonzero(assembly.open & known.numpy()))
        shared = torch.from_numpy(alignment.source_id.astype(np.int64))[anchors]
        support = sparsemax_support(inputs.vectors.vectors[tokens], inputs.vectors.vectors[anchors])
        return combine(support, support.weights, inputs.rows[shared])

    _, grown = measured(ours)
    title = f"deepfocus.FOCUS, {len(new):,} new tokens, {len(ids):,} anchors"
    peer_time, our_time = timed(peer, runs=max(1, runs - 1), warm=0), timed(ours, runs=runs)
    equal = f"rows equal to {float(difference.max()):.0e} with the anchors of deepfocus"
    note = f"{title}: {equal}; saltlm has {len(inputs.anchors):,}."
    return lines(title, our_time, grown, peer_time, grown_peer), [note]


def omp(inputs: Inputs, sample: int, runs: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare with tokensurgeon's orthogonal matching pursuit; returns table rows and notes."""
    from mergekit.tokensurgeon import batch_omp

    spread = inputs.new[torch.linspace(0, len(inputs.new) - 1, sample).long()]
    new, anchors = inputs.plm[spread], inputs.plm[inputs.anchors]

    def peer() -> torch.Tensor:
        rows = []
        for part in new.split(BATCH):
            picks, coefficients = batch_omp(part, anchors, PICKS)
            rows.append(torch.bmm(coefficients[:, None], inputs.anchor_rows[picks])[:, 0])
        return torch.cat(rows)

    def ours() -> torch.Tensor:
        support = pursue(new, anchors, PICKS)
        return combine(support, support_lstsq(new, anchors, support).coefficients, inputs.anchor_rows)

    built, grown_peer = measured(peer)
    rows, grown = measured(ours)
    # Anchors whose products differ by rounding only may be picked in either order, and every later pick then differs.
    difference = relative_difference(rows, built)
    same = float((difference < 1e-3).float().mean())
    if same < 0.95:
        raise SystemExit(f"only {same:.1%} of the rows are equal to 1e-3")
    peer_time, our_time = timed(peer, runs=max(1, runs - 1), warm=0), timed(ours, runs=runs)
    title = f"tokensurgeon's OMP, {sample} of {len(inputs.new):,} tokens, {len(anchors):,} anchors, {PICKS} picks"
    scale = len(inputs.new) / sample
    rows_of_table = lines(title, our_time, grown, peer_time, grown_peer)
    rows_of_table.append(
        (
            f"{title}: scaled to all tokens",
            f"{figure(our_time.median * scale)} s and {figure(peer_time.median * scale)} s",
        )
    )
    return rows_of_table, [f"OMP: {same:.1%} of the rows equal to 1e-3, the others by ties of float32."]


def subword(inputs: Inputs, sample: int, runs: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare with tokensurgeon's mean of source pieces; returns table rows and notes."""
    from mergekit.tokenizer.normalization import normalize_token
    from mergekit.tokensurgeon import subword_approximate

    from saltlm.rows.methods.pieces import Pieces

    # tokensurgeon's command would treat this tokenizer as byte-level and miss the word starts, so tokens are normalized here.
    vocabulary = {index: token for token, index in inputs.tokenizer.get_vocab().items()}
    new = inputs.new.numpy()
    tokens = [normalize_token(vocabulary[index], inputs.tokenizer.special_tokens_map) for index in new.tolist()]

    def peer() -> torch.Tensor:
        return subword_approximate(inputs.rows, tokens, False, inputs.source.tokenizer)

    class Covers:
        alignment, source_rows = inputs.alignment, inputs.rows

    def ours() -> torch.Tensor:
        alignment = align(inputs.source.tokenizer, inputs.tokenizer)
        Covers.alignment = alignment
        pieces = Pieces(Covers)
        spelled = new[pieces.spelled(new)]
        return torch.cat(
            [pieces.mean(part, inputs.rows[pieces.flat(part)]).float() for part in np.array_split(spelled, 4)]
        )

    built, grown_peer = measured(peer)
    rows, grown = measured(ours)
    pieces = Pieces(Covers)
    spelled = pieces.spelled(new)
    # tokensurgeon tokenizes the token's text as a separate word; where the pieces are the same, so is the mean.
    difference = relative_difference(rows, built[torch.from_numpy(spelled)])
    same = float((difference < TOLERANCE).float().mean())
    if same < 0.5:
        raise SystemExit(f"only {same:.1%} of the rows are equal")
    peer_time, our_time = timed(peer, runs=max(1, runs - 1), warm=0), timed(ours, runs=runs)
    title = f"tokensurgeon's mean of pieces, {len(new):,} tokens"
    note = f"Mean of pieces: {same:.1%} of the rows equal; the others are segmented differently."
    return lines(title, our_time, grown, peer_time, grown_peer), [note]


def lines(title: str, ours: Timing, grown: float, peer: Timing, grown_peer: float) -> list[tuple[str, str]]:
    """Table rows for one comparison; ``grown`` is the growth of the peak memory in MB."""
    return [
        (f"{title}: saltlm", f"**{ours}**, {figure(grown)} MB"),
        (f"{title}: peer", f"{peer}, {figure(grown_peer)} MB"),
        (f"{title}: peer / saltlm", f"**{figure(peer.median / ours.median)} x**"),
    ]


def main() -> None:
    benches = {"focus": focus, "omp": omp, "subword": subword}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="method", help=f"{', '.join(benches)} (default: all)")
    parser.add_argument(
        "--peers", type=Path, default=Path(__file__).parent.parent / "build" / "peers", help="folder of the packages"
    )
    parser.add_argument("--sample", type=int, default=512, help="number of tokens for omp (default: 512)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of saltlm (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods or list(benches)
    for name in arguments.methods:
        if name not in benches:
            parser.error(f"{name}: expected {', '.join(benches)}")
    if not (arguments.peers / "deepfocus").is_dir() and "focus" in arguments.methods:
        raise SystemExit(f"no package deepfocus in {arguments.peers}; install it with the pip command of --help")
    sys.path.append(str(arguments.peers))  # last, so that torch and transformers come from this environment
    torch.set_num_threads(arguments.threads)
    inputs = Inputs()
    rows, notes = [], []
    for name in arguments.methods:
        sys.stderr.write(f"{name}\n")
        more, more_notes = benches[name](inputs, arguments.sample, arguments.runs)
        rows += more
        notes += more_notes
    record(
        "Peers' packages, Finnish pair",
        rows,
        f"python bench/peers.py {' '.join(arguments.methods)} --sample {arguments.sample} --runs {arguments.runs}",
        [f"{arguments.threads} threads for both sides.", *notes],
    )


if __name__ == "__main__":
    main()
