"""Task files of a folder -> entries of the harness's index whose local data is found wherever the run starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import input_error

# Loaders of plain data files, whose paths we take as relative to the task file that names them.
FILE_LOADERS = ("json", "csv", "parquet", "text", "arrow")


def localize(manager: Any, folder: Path, scratch: str) -> list[str]:
    """Make the data files of a folder's tasks absolute.

    Args:
        manager: the harness's task manager, which has looked into the folder; its index is changed.
        folder: with task files, also in folders below it.
        scratch: where the datasets library may put converted copies of the data.

    Returns:
        Names of the folder's tasks and groups.

    Raises:
        InputError: a task file or a function that it names cannot be read, a data file is missing, or there is no task.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {path.resolve() for path in folder.rglob("*.yaml")}
    for path in sorted(files):
        try:  # the index leaves out what it cannot read without a word
            load_yaml(path, resolve_func=False)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise input_error(
                f"task file {str(path)!r}", reason, "a task of lm-eval in YAML", "mend the file"
            ) from error
    names = []
    for name, entry in list(manager.task_index.items()):
        if entry.yaml_path is None or Path(entry.yaml_path).resolve() not in files:
            continue
        names.append(name)
        if "dataset_path" not in (entry.cfg or {}):
            continue
        path = Path(entry.yaml_path)
        try:
            config = load_yaml(path)
        except Exception as error:
            found = f"a function that cannot be loaded ({error})"
            raise input_error(f"task file {str(path)!r}", found, "one beside it", "mend the file") from error
        # In place of the file, which the harness would read again.
        entry.yaml_path, entry.cfg = None, _with_data(config, path, scratch)
    if not names:
        raise input_error(
            f"task folder {str(folder)!r}", "no task", "task files of lm-eval (*.yaml)", "check the folder"
        )
    return names


def _with_data(config: dict[str, Any], path: Path, scratch: str) -> dict[str, Any]:
    """The configuration with its local data beside ``path``."""
    options = dict(config.get("dataset_kwargs") or {})
    where = config["dataset_path"]
    if where not in FILE_LOADERS:
        beside = path.parent / str(where)
        return {**config, "dataset_path": str(beside)} if beside.is_dir() else config

    def absolute(files: Any) -> Any:
        if isinstance(files, Mapping):
            return {split: absolute(part) for split, part in files.items()}
        if isinstance(files, list):
            return [absolute(part) for part in files]
        if not any(path.parent.glob(str(files))) if not Path(files).is_absolute() else not Path(files).exists():
            expected = "a data file relative to the task file"
            raise input_error(f"task file {str(path)!r}", f"no file {str(files)!r}", expected, "check its data_files")
        return str(path.parent / files)

    if "data_files" in options:
        options["data_files"] = absolute(options["data_files"])
    # Its converted copy goes with the run instead of staying in the user's cache.
    return {**config, "dataset_kwargs": {"cache_dir": scratch, **options}}
