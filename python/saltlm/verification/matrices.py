"""The vocabulary matrices of the folder beside those of the source, and the rows of copied tokens in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..inspection.rows import Rows
from ..model.checkpoint import Source
from ..model.stored_rows import block_rows, gather
from .record import COPIES
from .results import Check, RowDifference, judged

INPUT, OUTPUT, BIAS = "input", "output", "bias"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One matrix of vocabulary rows.

    Attributes:
        name: ``input``, ``output`` or ``bias``; the key of a further table.
        role: ``input``, ``output`` or ``bias``: which rows it holds.
        written: [T', ...], of the folder.
        source: [S, ...], of the source.
        table: whether it is a further table.
    """

    name: str
    role: str
    written: torch.Tensor
    source: torch.Tensor
    table: bool = False


def sides_of(written: Source, source: Source) -> tuple[list[Side], list[str]]:
    """The matrices that folder and source both have, and sentences on those that only one has.

    Args:
        written: the folder.
        source: the source model.
    """
    pairs: list[tuple[str, str, torch.Tensor | None, torch.Tensor | None, bool]] = [
        (INPUT, INPUT, written.input_rows, source.input_rows, False),
        (OUTPUT, OUTPUT, written.output_rows, source.output_rows, False),
        (BIAS, BIAS, written.output_bias, source.output_bias, False),
    ]
    tables = {table.key: table for table in written.tables}
    for table in source.tables:
        key = source.weights.unwrapped.get(table.key, table.key)
        there = tables.pop(key, None)
        pairs.append((key, table.role, None if there is None else there.rows, table.rows, True))
    pairs += [(key, table.role, table.rows, None, True) for key, table in tables.items()]
    sides, problems = [], []
    for name, role, here, there_rows, is_table in pairs:
        if here is None and there_rows is None:
            continue
        if here is None or there_rows is None:
            problems.append(f"the {name} matrix is in the {'source' if here is None else 'folder'} alone")
        elif here.shape[1:] != there_rows.shape[1:] or len(here) != len(written.input_rows):
            problems.append(f"the {name} matrix is {list(here.shape)}, the source's {list(there_rows.shape)}")
        else:
            sides.append(Side(name=name, role=role, written=here, source=there_rows, table=is_table))
    return sides, problems


def check_copied(rows: Rows, written: Source, source: Source) -> Check:
    """Compare each copied row with the row of its source token, bit for bit, in the dtype as written.

    Args:
        rows: the record.
        written: the folder.
        source: the source model.
    """
    sides, problems = sides_of(written, source)
    origins = np.array(rows.summary["origins"], dtype=object)[rows.arrays["origin"]]
    ids = np.flatnonzero(np.isin(origins, COPIES))
    input_ids = rows.arrays["source_id"].astype(np.int64)
    beyond = ids[(input_ids[ids] < 0) | (input_ids[ids] >= len(source.input_rows))]
    differences = [RowDifference(id=int(row), token=rows.texts[row], tensor="record") for row in beyond]
    ids = np.setdiff1d(ids, beyond)
    output_ids = _output_ids(rows, source, input_ids)
    for side in sides:
        for block in np.array_split(ids, max(1, -(-len(ids) // block_rows(side.source[:1].numel())))):
            candidates = [output_ids if side.role in (OUTPUT, BIAS) else input_ids]
            if side.table:  # a table of input rows has for such a token the row that a tied head would have
                candidates = [input_ids, output_ids]
            differences += _differences(rows, side, block, candidates)
    return judged("copied rows", f"{len(ids):,} rows in {len(sides)} matrices, bit for bit", differences, problems)


def _output_ids(rows: Rows, source: Source, input_ids: np.ndarray) -> np.ndarray:
    """Source ids of the output rows: those of the input rows, except for a token that begins and ends a text."""
    ids = input_ids.copy()
    for role in rows.summary["roles"]:
        token = None if role["output"] is None else source.tokenizer.convert_tokens_to_ids(role["output"])
        if isinstance(token, int) and 0 <= token < len(source.input_rows) and 0 <= role["id"] < len(ids):
            ids[role["id"]] = token
    return ids


def _differences(rows: Rows, side: Side, block: np.ndarray, candidates: list[np.ndarray]) -> list[RowDifference]:
    """The rows of a block that equal none of their candidates among the source rows."""
    if not len(block):
        return []
    actual = gather(side.written, torch.from_numpy(block)).reshape(len(block), -1)
    wrong, difference = torch.ones(len(block), dtype=torch.bool), torch.zeros(len(block), dtype=torch.float64)
    for ids in candidates:
        chosen = ids[block]
        # A table of per-layer inputs may have fewer rows: the model reads row 0 for a token beyond them.
        chosen = np.where(chosen < len(side.source), chosen, 0)
        expected = gather(side.source, torch.from_numpy(chosen)).to(actual.dtype).reshape(len(block), -1)
        wrong &= (bits(expected) != bits(actual)).any(dim=1)
        difference = (expected.double() - actual.double()).abs().amax(dim=1)
    return [
        RowDifference(
            id=int(block[at]), token=rows.texts[block[at]], tensor=side.name, difference=float(difference[at])
        )
        for at in wrong.nonzero()[:, 0].tolist()
    ]


def bits(rows: torch.Tensor) -> torch.Tensor:
    """The bytes of rows, uint8 [n, D times the bytes of a value]."""
    return rows.contiguous().view(torch.uint8)
