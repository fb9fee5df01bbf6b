"""Verify a transferred folder: the recipe, from the checks of the folder alone to the rows built again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, first_line
from ..files.summary_file import Summary
from ..inspection.rows import Rows, inspect
from ..model.checkpoint import Source, load_source
from ..pipeline import prepare
from ..progress import Clock, StageProgress
from ..shared import Shared
from .body import check_body
from .config import VerifyConfig
from .inputs import changed_vectors, find_source, find_target, find_vectors, recorded_config
from .matrices import check_copied
from .record import check_files, check_record, schema_faults
from .results import Check, Verification, unchecked
from .solving import check_recipes, check_solved

COPIED, RECIPES, SOLVED, BODY = "copied rows", "recipes", "solved again", "body"
TRAINED = "trained after the transfer: rows are not compared"
NO_RECORD = "saltlm.json does not fit its schema"


def verify(
    folder: str | Path,
    source: str | Path | None = None,
    target: str | Path | None = None,
    auxiliary: str | Path | None = None,
    config: VerifyConfig | None = None,
    *,
    progress: StageProgress | None = None,
) -> Verification:
    """Check that a transferred folder is what its record says.

    The record is checked against its schema and the matrices, and the files against their digests. Where the inputs of the
    transfer are at hand with the recorded digests, copied rows are compared with the source's bit for bit, weighted sums with
    the sums by the recorded weights, a sample of new rows with what the reference operators give in float64, and the
    other tensors with the source's. Nothing is written, and nothing is fetched for a recorded name.

    Args:
        folder: a folder that ``saltlm transfer`` or ``saltlm adapt`` wrote.
        source: folder or hub name of the source; ``None`` uses the recorded one.
        target: folder or hub name of the target; ``None`` uses the recorded one.
        auxiliary: vectors of the target language; ``None`` uses the recorded ones.
        config: the options; ``None`` is all defaults.
        progress: called with (stage, units done, units in all); the last is 0 where it is not known.

    Returns:
        The checks, each passed, failed or not checked.

    Raises:
        InputError: the folder is no transferred folder, its record cannot be read, or a given input cannot be loaded.
    """
    folder, config, clock = Path(folder).expanduser(), config or VerifyConfig(), Clock(progress)
    with clock("record"):
        rows = inspect(folder, trust_remote_code=config.trust_remote_code)
        written = load_source(folder, trust_remote_code=config.trust_remote_code)
        problems = schema_faults(rows.summary)
        checks = [check_record(rows, written, problems)]
    with clock("files"):
        checks.append(check_files(folder, written, rows.summary.get("files")))
    reason = NO_RECORD if problems else TRAINED if "adapted" in rows.summary else ""
    if reason:
        checks += [unchecked(name, reason) for name in (COPIED, RECIPES, SOLVED, BODY)]
    else:
        names = tuple(None if name is None else str(name) for name in (source, target, auxiliary))
        checks += _compare(rows, written, names, config, clock)
    return Verification(folder=folder, checks=checks)


def _compare(
    rows: Rows, written: Source, names: tuple[str | None, ...], config: VerifyConfig, clock: Clock
) -> list[Check]:
    """The checks that read the inputs of the transfer."""
    summary, shared = rows.summary, Shared(1 << 62)  # the source is read once for all checks
    options = recorded_config(summary, config)
    if isinstance(options, str):
        return [unchecked(name, options) for name in (COPIED, RECIPES, SOLVED, BODY)]
    source, target, auxiliary = names
    with clock("source"):
        model = find_source(summary, source, options, shared)
    if model.loaded is None:
        return [unchecked(name, model.reason) for name in (COPIED, RECIPES, SOLVED, BODY)]
    loaded = model.loaded
    with clock(COPIED):
        checks = [check_copied(rows, written, loaded)]
    with clock(RECIPES):
        checks.append(check_recipes(rows, written, loaded, config))
    with clock(SOLVED):
        checks.append(_solve(rows, written, (model.name, target, auxiliary), config, shared, clock))
    with clock(BODY):
        expanded = summary["expansion"] is not None
        checks.append(_checked(BODY, lambda: check_body(written, loaded, full=config.full, expanded=expanded)))
    return checks


def _solve(
    rows: Rows,
    written: Source,
    names: tuple[str, str | None, str | None],
    config: VerifyConfig,
    shared: Shared,
    clock: Clock,
) -> Check:
    """The check that builds rows again, where source, target and vectors are at hand."""
    summary: Summary = rows.summary
    options = recorded_config(summary, config)
    if isinstance(options, str):
        return unchecked(SOLVED, options)
    source, target, auxiliary = names
    donor = find_target(summary, target, options, shared)
    if donor.loaded is None:
        return unchecked(SOLVED, donor.reason)
    vectors, reason = find_vectors(summary, auxiliary)
    if reason:
        return unchecked(SOLVED, reason)

    def solve() -> Check:
        quiet = Clock(None)
        quiet.progress = lambda stage, done, total: clock.progress(SOLVED, done, total)
        prepared = prepare(source, donor.name, vectors, options, shared=shared, clock=quiet)
        if changed := changed_vectors(summary, prepared.job.auxiliary, prepared.job.source_auxiliary):
            return unchecked(SOLVED, changed)
        return check_solved(rows, written, prepared, config)

    return _checked(SOLVED, solve)


def _checked(name: str, check: Callable[[], Check]) -> Check:
    """The result of a check; an input that the check cannot use makes it unchecked."""
    try:
        return check()
    except InputError as error:
        return unchecked(name, first_line(error))
