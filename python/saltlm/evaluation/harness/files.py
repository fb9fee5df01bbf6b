"""Task files of a folder: their local data files get absolute paths, so that a run may start in any folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import input_error

# Loaders of the datasets library for data files. Their paths are relative to the task file.
FILE_LOADERS = ("json", "csv", "parquet", "text", "arrow")


def localize(manager: Any, folder: Path, scratch: str) -> list[str]:
    """Replace relative paths of data files in the index of a task manager.

    Args:
        manager: the task manager of the harness, which has indexed the folder. Its index is modified.
        folder: folder with task files, also in its subfolders.
        scratch: folder for the converted copies of the data that the datasets library writes.

    Returns:
        Names of the tasks and groups of the folder.

    Raises:
        InputError: a task file or a function that it names cannot be read, a data file is missing, or there is no task.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {path.resolve() for path in folder.rglob("*.yaml")}
    for path in sorted(files):
        try:  # the harness leaves a file that it cannot read out of its index, without a message
            load_yaml(path, resolve_func=False)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise input_error(
                f"task file {str(path)!r}", reason, "a task of lm-eval in YAML", "correct the file"
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
            problem = f"a function that cannot be loaded ({error})"
            raise input_error(
                f"task file {str(path)!r}", problem, "a function in a file of the same folder", "correct the file"
            ) from error
        # Without a path the harness uses this configuration and does not read the file again.
        entry.yaml_path, entry.cfg = None, _with_data(config, path, scratch)
    if not names:
        raise input_error(
            f"task folder {str(folder)!r}", "no task", "task files of lm-eval (*.yaml)", "check the folder"
        )
    return names


def _with_data(config: dict[str, Any], path: Path, scratch: str) -> dict[str, Any]:
    """A configuration whose local data has absolute paths.

    Args:
        config: the content of a task file.
        path: the task file.
        scratch: as for :func:`localize`.
    """
    options = dict(config.get("dataset_kwargs") or {})
    dataset = config["dataset_path"]
    if dataset not in FILE_LOADERS:
        folder = path.parent / str(dataset)
        return {**config, "dataset_path": str(folder)} if folder.is_dir() else config

    def absolute(files: Any) -> Any:
        if isinstance(files, Mapping):
            return {split: absolute(part) for split, part in files.items()}
        if isinstance(files, list):
            return [absolute(part) for part in files]
        if Path(files).is_absolute():
            exists = Path(files).exists()
        else:
            exists = any(path.parent.glob(str(files)))
        if not exists:
            expected = "a data file relative to the task file"
            raise input_error(f"task file {str(path)!r}", f"no file {str(files)!r}", expected, "check its data_files")
        return str(path.parent / files)

    if "data_files" in options:
        options["data_files"] = absolute(options["data_files"])
    # The converted copy is removed with the scratch folder and does not stay in the cache of the user.
    return {**config, "dataset_kwargs": {"cache_dir": scratch, **options}}
