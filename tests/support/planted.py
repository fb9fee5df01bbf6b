"""Problems with a known solution for the methods' tests, and fixtures that these tests share."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from saltlm.alignment.align import Alignment, MatchKind
from saltlm.config import TransferConfig
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import Head
from saltlm.rows.methods import METHODS, Job
from saltlm.vectors.auxiliary import Auxiliary, load_auxiliary


@dataclasses.dataclass(frozen=True)
class Planted:
    """A job over random matrices. Its alignment is a stand-in that has only the ids of the anchors."""

    job: Job
    plm: torch.Tensor
    anchors: np.ndarray
    new: np.ndarray


class _Ids:
    """The part of an alignment that anchor methods read."""

    def __init__(self, source_id: np.ndarray) -> None:
        self.source_id = source_id
        self.cover_offsets = np.zeros(len(source_id) + 1, dtype=np.int64)
        self.cover_ids = np.zeros(0, dtype=np.int32)


class Side:
    """The part of a source that a head reads."""

    def __init__(self, rows: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> None:
        self.output_rows, self.output_bias = rows, bias


def planted(
    plm: torch.Tensor, lm: torch.Tensor, count: int, *, method: str, head: torch.Tensor | None = None, **options
):
    """The first ``count`` tokens are anchors with the rows ``lm`` [count, D]; the others are to be built."""
    source_id = np.full(len(plm), -1, dtype=np.int32)
    source_id[:count] = np.arange(count)
    vectors = Auxiliary(plm.float(), torch.ones(len(plm), dtype=torch.bool), {})
    job = Job(
        alignment=_Ids(source_id),
        source_rows=lm,
        head=Head(Side(head)),
        used=np.arange(len(lm)),
        auxiliary=vectors,
        plm_rows=plm,
        anchors=np.arange(count),
        new=np.arange(count, len(plm)),
        config=TransferConfig(method=method, **options),
        device=torch.device("cpu"),
    )
    return Planted(job, plm, job.anchors, job.new)


def built(case: Planted, part: str = "rows") -> torch.Tensor:
    """Float64 rows of the new tokens, in order; every one must be built."""
    blocks = [block for block in METHODS[case.job.config.method].build(case.job) if block.rows is not None]
    ids = torch.cat([block.ids for block in blocks])
    assert ids.sort().values.tolist() == case.new.tolist()
    return torch.cat([getattr(block, part) for block in blocks])[ids.argsort()].double()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(draw(size, size, seed=seed).double())[0]


def cosines(case: Planted) -> torch.Tensor:
    unit = torch.nn.functional.normalize(case.plm.float().double(), dim=1)
    return unit[case.new] @ unit[case.anchors].T


def sparsemax(z: torch.Tensor) -> torch.Tensor:
    """By bisection on the threshold, an algorithm that has no step in common with the operators' sorting."""
    low, high = z.min() - 1, z.max()
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (z - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (z - low).clamp_min(0)


@pytest.fixture(scope="session")
def untied_parts(untied):
    """Source, donor, alignment and vectors of the untied pair."""
    done = transfer(untied.source, untied.target, untied.vectors, config=TransferConfig(method="salt"))
    vectors = load_auxiliary(untied.vectors, done.alignment.target.words())
    return load_source(untied.source), load_donor(untied.target), done.alignment, vectors


def anchors_by_definition(alignment: Alignment, known: torch.Tensor | None) -> np.ndarray:
    shared = alignment.shared & (alignment.kind != MatchKind.ROLE)
    return np.flatnonzero(shared if known is None else shared & known.numpy())


@pytest.fixture(scope="session")
def bilingual(untied_parts, tmp_path_factory) -> dict[str, str]:
    """Vectors of the source's words, and a dictionary that has a few of them twice."""
    folder = tmp_path_factory.mktemp("bilingual")
    alignment, vectors = untied_parts[2:]
    words = sorted({word for word in alignment.source.words() if word and " " not in word})
    values = np.random.default_rng(5).normal(size=(len(words), vectors.vectors.shape[1]))
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}" for word, row in zip(words, values, strict=True)]
    (folder / "source.vec").write_text(f"{len(lines)} {values.shape[1]}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    known = [word for word, have in zip(alignment.target.words(), vectors.known.tolist(), strict=True) if word and have]
    chosen = [word for word in words if len(word) > 1][:40]
    pairs = [f"{one}\t{other}" for one, other in zip(chosen, known[-40:], strict=True)]
    (folder / "pairs.txt").write_text("\n".join([*pairs, "", "two words"]) + "\n", encoding="utf-8")
    return {"source_auxiliary": str(folder / "source.vec"), "dictionary": str(folder / "pairs.txt")}
