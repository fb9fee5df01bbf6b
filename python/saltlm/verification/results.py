"""Results of a verification: one named check after the other, with the rows that differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Result = Literal["passed", "failed", "not checked"]
PASSED: Result = "passed"
FAILED: Result = "failed"
NOT_CHECKED: Result = "not checked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowDifference:
    """A row that is not what the record and the inputs say.

    Attributes:
        id: number of the row.
        token: its token, as ``saltlm inspect`` shows it; empty for a row without a token.
        tensor: ``input``, ``output``, ``bias``, ``record``, or the key of a further matrix of vocabulary rows.
        difference: largest absolute difference of a value; ``None`` where no values were compared.
    """

    id: int
    token: str
    tensor: str
    difference: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check.
        result: ``passed``, ``failed`` or ``not checked``.
        detail: what was compared, what differs, or why nothing was compared.
        rows: the rows that differ.
        names: the files or tensors that differ.
    """

    name: str
    result: Result
    detail: str
    rows: Sequence[RowDifference] = ()
    names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of :func:`~saltlm.verify`.

    Attributes:
        folder: the folder.
        checks: in the order in which they ran.
    """

    folder: Path
    checks: Sequence[Check]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.result == FAILED for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for ``--json``."""
        checks = [{**dataclasses.asdict(check), "names": list(check.names)} for check in self.checks]
        for check in checks:
            check["rows"] = list(check["rows"])
        return {"folder": str(self.folder), "failed": self.failed, "checks": checks}


def judged(name: str, passed: str, rows: Sequence[RowDifference] = (), names: Sequence[str] = ()) -> Check:
    """A check that failed where rows or names differ, and passed else.

    Args:
        name: of the check.
        passed: what was compared.
        rows: the rows that differ.
        names: the files or tensors that differ, or sentences on what differs.
    """
    if not rows and not names:
        return Check(name=name, result=PASSED, detail=passed)
    parts = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    if rows:
        parts.append(f"{len({row.id for row in rows}):,} rows differ")
    return Check(name=name, result=FAILED, detail=f"{'; '.join(parts)} ({passed})", rows=rows, names=names)


def unchecked(name: str, reason: str) -> Check:
    """A check that could not run."""
    return Check(name=name, result=NOT_CHECKED, detail=reason)
