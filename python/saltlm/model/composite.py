"""Models of several parts, such as a language model with a vision tower: the text part, the class, entries of config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Auto classes whose models write text, in the order in which they are asked for the class of a config.
AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")

Path = tuple[str, ...]


def text_path(config: Any) -> Path:
    """Attribute names that lead from a config to the config of its text part, such as ``("text_config",)``.

    Args:
        config: a transformers config.

    Returns:
        The path; empty if the config is the text model's own.

    Raises:
        ValueError: several parts of the model read text, or transformers does not say which one does.
    """
    text = config.get_text_config()
    if text is config:
        return ()
    path = next((path for path, part in parts_of(config) if part is text), None)
    if path is None:
        raise ValueError(f"{type(config).__name__} has no part that is its text config")
    return path


def parts_of(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """A config and all configs that are nested in it, each with the attribute names that lead to it."""
    from transformers import PretrainedConfig

    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from parts_of(value, (*path, name))


def writer_class(config: Any) -> Any:
    """The model class of a config with several parts, if it writes text.

    It is the class that ``architectures`` names, where transformers has it, or else the one that an auto class has for the
    config.

    Args:
        config: a transformers config.

    Returns:
        The class, ``None`` if there is none.
    """
    import transformers

    for name in config.architectures or ():
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and getattr(named, "config_class", None) is type(config):
            return named
    for name in AUTO_CLASSES:
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", {})
        if type(config) in mapping:
            found = mapping[type(config)]
            # For some configs AutoModelForCausalLM names the class of the text part alone.
            if getattr(found, "config_class", None) is type(config):
                return found
    return None


def entry_paths(raw: Mapping[str, Any], path: Path, key: str) -> tuple[Path, ...]:
    """Where config.json holds an entry of the text part.

    Older files hold the entries of the text part at the top, without a ``text_config``; some hold an entry at both places.

    Args:
        raw: content of config.json.
        path: leads to the text part, see :func:`text_path`.
        key: name of the entry.

    Returns:
        Paths of the entry: in the text part or, if the file has no such part, in the nearest one around it; and wherever a
        part around it has the entry, too.
    """
    nodes = [(path[:length], _node(raw, path[:length])) for length in range(len(path), -1, -1)]
    present = [(prefix, node) for prefix, node in nodes if node is not None]
    return tuple((*prefix, key) for index, (prefix, node) in enumerate(present) if index == 0 or key in node)


def _node(raw: Any, path: Path) -> Mapping[str, Any] | None:
    """The object at a path of config.json; ``None`` if there is none."""
    for name in path:
        raw = raw.get(name) if isinstance(raw, Mapping) else None
    return raw if isinstance(raw, Mapping) else None


def with_entry(raw: Mapping[str, Any], path: Path, value: object) -> dict[str, Any]:
    """A copy of the content of a config.json with one entry set, in a nested object if the path has several names."""
    name, *rest = path
    if rest:
        nested = raw.get(name)
        value = with_entry(nested if isinstance(nested, Mapping) else {}, tuple(rest), value)
    return {**raw, name: value}
