"""FOCUS and WECHSEL by the code of their authors, fetched from the package index and never installed.

What that code imports beside numpy, torch and transformers is stood in for by a few lines each: a cosine matrix, a logger, and
a fastText model that holds a table of vectors. FOCUS runs on the real Finnish pair, WECHSEL on the tiny untied one, for it
composes all rows token by token. Where they are wrong and so differ from saltlm, the test says so.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_real_methods import ENTMAX

from saltlm.alignment.align import BYTE_PIECE, HOLE, SPECIAL, MatchKind, load_tokens
from saltlm.config import TransferConfig
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED
from saltlm.vectors.auxiliary import load_auxiliary
from saltlm_demo import finnish
from saltlm_demo.inputs import Package, fetch

pytestmark = pytest.mark.real

DEEPFOCUS = Package(
    name="deepfocus",
    version="1.0.1",
    sha256="c8b93e8394867083a1bfdf8051c4d8564e51e7862928ec2c6d64205294f62451",
    size=13_673,
    members=("deepfocus/*.py",),
    licence="MIT",
)
WECHSEL = Package(
    name="wechsel",
    version="0.0.4",
    sha256="6c37521bb3a283ccda70aec0af78fc694dad8c95d7d27f6129cb032888e02bd1",
    size=9_279,
    members=("wechsel/*.py",),
    licence="MIT",
)
SAMPLE = 150


def cosine_matrix(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = (side.astype(np.float64) for side in (left, right))
    lengths = [np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in (left, right)]
    return (left / lengths[0]) @ (right / lengths[1]).T


def stand_in(monkeypatch, name: str, **content) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def focus(monkeypatch) -> SimpleNamespace:
    """The modules of deepfocus that hold its rules; the one that trains fastText is stood in for."""
    quiet = SimpleNamespace(debug=print, info=print, success=print, warning=print)
    stand_in(monkeypatch, "fastdist", fastdist=SimpleNamespace(cosine_matrix_to_matrix=cosine_matrix))
    stand_in(monkeypatch, "print_on_steroids", PrinterOnSteroids=lambda **_: quiet)
    stand_in(monkeypatch, "deepfocus").__path__ = [str(fetch(DEEPFOCUS) / "deepfocus")]
    stand_in(monkeypatch, "deepfocus.fasttext_embs", load_target_token_embedding=None)
    parent = stand_in(monkeypatch, "peer_entmax")
    parent.__path__ = [str(fetch(ENTMAX) / "entmax")]
    sparsemax = importlib.import_module("peer_entmax.activations").sparsemax
    stand_in(monkeypatch, "entmax", sparsemax=lambda values: sparsemax(values, dim=-1))
    for name in ("vocab_helper", "focus"):
        monkeypatch.delitem(sys.modules, f"deepfocus.{name}", raising=False)
    return SimpleNamespace(
        rules=importlib.import_module("deepfocus.focus"), vocabulary=importlib.import_module("deepfocus.vocab_helper")
    )


@pytest.fixture(scope="module")
def finnish_focus():
    """The FOCUS transfer of the real Finnish pair by saltlm, its problem and its inputs."""
    pair = finnish.finnish_pair()
    config = TransferConfig(method="focus", gguf_file=pair.gguf_file, heldout=0.0, dtype="float32")
    return transfer(pair.source, pair.donor, pair.vectors, config=config), finnish.finnish_problem(pair), pair


def test_focus_rows_equal_those_of_deepfocus(focus, finnish_focus) -> None:
    done, problem, _ = finnish_focus
    chosen = np.sort(np.random.default_rng(0).choice(len(problem.new), SAMPLE, replace=False))
    old = {
        int(token): SimpleNamespace(auxiliary_embedding=vector, source_embedding=row)
        for token, vector, row in zip(problem.anchors, problem.anchor_auxiliary, problem.anchor_lm, strict=True)
    }
    new = {
        int(problem.new[index]): SimpleNamespace(
            auxiliary_embedding=problem.new_auxiliary[index], target=SimpleNamespace(id=int(problem.new[index]))
        )
        for index in chosen
    }
    expected = focus.rules.focus_additional_token_initialization(old, new, torch.zeros_like(done.input_rows), "cpu")
    ids = torch.tensor(sorted(new))
    assert (done.origin[ids] == COMPOSED).all()
    off = (done.input_rows[ids] - expected[ids]).norm(dim=1) / expected[ids].norm(dim=1)
    assert off.max() < 1e-4


def test_focus_finds_all_shared_tokens_of_saltlm_and_some_false_ones(focus, finnish_focus) -> None:
    """It compares decoded text: a byte-level token that is no whole character decodes to U+FFFD, so unlike ones look alike."""
    done, _, pair = finnish_focus
    source = load_source(pair.source, gguf_file=pair.gguf_file).tokenizer
    overlap, _ = focus.rules.get_overlapping_tokens(done.tokenizer, source, False, True, False)
    matches = {entry.target.id: [token.id for token in entry.source] for entry in overlap.values()}
    alignment = done.alignment
    exact = np.flatnonzero(alignment.kind == MatchKind.EXACT)
    missed = [int(token) for token in exact if int(alignment.source_id[token]) not in matches.get(int(token), [])]
    flags = alignment.target.flags()
    data, offsets = alignment.source.token_bytes()

    def broken(piece: int) -> bool:
        """Its bytes are no text, or it is a byte, a special token or a blank, which decoding strips."""
        spelled = bytes(data[offsets[piece] : offsets[piece + 1]])
        try:
            return not spelled.decode().strip() or bool(alignment.source.flags()[piece] & (SPECIAL | BYTE_PIECE | HOLE))
        except UnicodeDecodeError:
            return True

    false = [
        token
        for token, pieces in matches.items()
        if not (alignment.shared[token] or flags[token] & (SPECIAL | HOLE) or broken(pieces[0]))
    ]
    assert len(missed) <= 0.002 * len(exact), [alignment.target.words()[token] for token in missed[:20]]
    assert not false, [(alignment.target.words()[token], matches[token]) for token in false[:20]]


@dataclasses.dataclass
class Table:
    """What of a fastText model WECHSEL asks for, over a table of words."""

    vectors: dict[str, np.ndarray]
    width: int

    def get_dimension(self) -> int:
        return self.width

    def get_words(self, include_freq: bool, on_unicode_error: str):
        return list(self.vectors), [1] * len(self.vectors)

    def get_word_vector(self, word: str) -> np.ndarray:
        return self.vectors.get(word, np.zeros(self.width))

    def get_word_id(self, word: str) -> int:
        return list(self.vectors).index(word) if word in self.vectors else -1


def table(path: Path) -> Table:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    entries = [line.split(" ") for line in lines[1:]]
    vectors = {word: np.array(values, dtype=np.float32).astype(np.float64) for word, *values in entries}
    return Table(vectors, int(lines[0].split()[1]))


class WithoutBytes:
    """A tokenizer whose byte pieces decode to nothing."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def decode(self, token: int) -> str:
        is_byte = self.tokenizer.convert_ids_to_tokens(token).startswith("<0x")
        return "" if is_byte else self.tokenizer.decode(token)


@pytest.fixture
def wechsel(monkeypatch) -> ModuleType:
    stand_in(monkeypatch, "fasttext", FastText=SimpleNamespace(_FastText=Table)).__path__ = []
    stand_in(monkeypatch, "fasttext.util")
    stand_in(monkeypatch, "nltk")
    stand_in(monkeypatch, "sklearn").__path__ = []
    stand_in(monkeypatch, "sklearn.metrics").__path__ = []
    stand_in(monkeypatch, "sklearn.metrics.pairwise", cosine_similarity=cosine_matrix)
    monkeypatch.delitem(sys.modules, "wechsel", raising=False)
    monkeypatch.syspath_prepend(str(fetch(WECHSEL)))
    return importlib.import_module("wechsel")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the dictionary open
def test_wechsel_rows_equal_its_authors(wechsel, untied, bilingual, tmp_path) -> None:
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method="wechsel", **bilingual))
    source = load_source(untied.source)
    # WECHSEL fails on a blank line of the dictionary, which saltlm skips.
    lines = Path(bilingual["dictionary"]).read_text(encoding="utf-8").splitlines()
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("\n".join(line for line in lines if "\t" in line) + "\n", encoding="utf-8")
    method = wechsel.WECHSEL(
        table(bilingual["source_auxiliary"]), table(untied.vectors), bilingual_dictionary=str(pairs)
    )
    rows = source.input_rows.double().numpy()
    # A byte piece such as <0x61> decodes to a letter and so gets a word's vector there: as a neighbour it is a false friend.
    info = method.apply(source.tokenizer, done.tokenizer, rows)[1]
    assert any(piece.startswith("<0x") for pieces, *_ in info.sources.values() for piece in pieces)
    matrix, info = method.apply(WithoutBytes(source.tokenizer), done.tokenizer, rows)
    eleven = method.apply(WithoutBytes(source.tokenizer), done.tokenizer, rows, neighbors=11)[1]
    auxiliary = load_auxiliary(bilingual["source_auxiliary"], load_tokens(source.tokenizer).vocabulary.words())
    same = compared = 0
    for token in np.flatnonzero(done.origin == COMPOSED):
        spelling = done.tokenizer.convert_ids_to_tokens(int(token))
        if spelling not in info.sources:
            continue
        pieces, cosines = info.sources[spelling][0], eleven.sources[spelling][2]
        # Twins share a vector: where the tenth and the eleventh are equally near, the choice between them is arbitrary.
        if np.isclose(cosines[9], cosines[10], atol=1e-6):
            continue
        assert auxiliary.known[source.tokenizer.convert_tokens_to_ids(list(pieces))].all()
        compared += 1
        expected = torch.from_numpy(matrix[token])
        same += bool((done.input_rows[token].double() - expected).norm() < 1e-3 * expected.norm())
    assert same == compared > 10
    # WECHSEL composes shared rows as well; saltlm copies them, as in the papers after WECHSEL.
    shared = np.flatnonzero(done.alignment.kind == MatchKind.EXACT)
    copied = source.input_rows[torch.from_numpy(done.alignment.source_id[shared].astype(np.int64))].double().numpy()
    assert np.isclose(matrix[shared], copied).all(axis=1).mean() < 0.5
    assert np.array_equal(done.input_rows[shared].double().numpy(), copied)
