"""Token ids of config.json that its class does not let be null."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Roles whose token stands in for a role that the new tokenizer lacks, the best first. The row of a pad token may get no
# gradient, so that pad takes eos last.
STAND_INS = {
    "pad": ("unk", "mask", "bos", "eos"),
    "bos": ("cls", "eos", "sep"),
    "cls": ("bos", "eos", "sep"),
    "eos": ("sep", "bos", "cls"),
    "sep": ("eos", "bos", "cls"),
    "mask": ("unk", "pad", "eos", "bos"),
}
OTHERS = ("unk", "pad", "eos", "bos")  # for any other token id


def without_refused_nulls(config: Mapping[str, Any], changes: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A config in which each null of ``changes`` that the config's class refuses is the id of another token.

    Some classes, ModernBERT's among them, declare ids such as ``cls_token_id`` as integers: a config.json with a null there
    cannot be read, and without the entry the class takes an id of its own, which may have no row.

    Args:
        config: content of config.json as it is about to be written.
        changes: the entries that differ from the source's config.json.
        tokenizer: the new tokenizer.
    """
    from transformers import CONFIG_MAPPING

    nulls = [key for key, value in changes.items() if value is None and config.get(key, 0) is None]
    model_type = config.get("model_type")
    if not nulls or model_type not in CONFIG_MAPPING or _reads(CONFIG_MAPPING[model_type], config):
        return dict(config)
    filled = {**config, **{key: _stand_in(key, tokenizer) for key in nulls}}
    for key in nulls:
        if _reads(CONFIG_MAPPING[model_type], {**filled, key: None}):
            filled[key] = None
    return filled


def _reads(config_class: Any, config: Mapping[str, Any]) -> bool:
    """Whether a config class accepts the content of a config.json."""
    try:
        config_class.from_dict(copy.deepcopy(dict(config)))
    except Exception:  # each config class has checks of its own, with errors of any type
        return False
    return True


def _stand_in(key: str, tokenizer: Any) -> int:
    """Id of the token that stands in for the role of a config entry."""
    role = key.removesuffix("_token_id")
    ids = (getattr(tokenizer, f"{other}_token_id", None) for other in (role, *STAND_INS.get(role, OTHERS)))
    return next((index for index in ids if index is not None), 0)
