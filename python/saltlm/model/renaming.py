"""How transformers renames the keys of a checkpoint when it loads a model class.

Checkpoints are older than the classes that load them: a key may lack the prefix of the base model or have one too many, or
come from another implementation of the model (``embed_out.weight`` of GPT-NeoX is ``lm_head.weight`` in the class).
transformers renames them on loading and back on saving. saltlm finds the vocabulary rows by the name in the class and writes
them under the key on disk, so that whatever loaded the source loads the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class LoadedKeys:
    """What transformers makes of the keys of a checkpoint.

    Attributes:
        names: key -> name of the tensor in the model; a key that the class does not have keeps the name that it was
            renamed to, or its own.
        computed: keys of the tensors that transformers does not load as they are: it splits, merges or converts them.
        tensors: name -> shape of the tensors of the class, tied ones under each of their names.
        buffers: names of the buffers that the class does not save; older checkpoints may hold them.
    """

    names: Mapping[str, str] = dataclasses.field(repr=False)
    computed: frozenset[str] = dataclasses.field(repr=False)
    tensors: Mapping[str, torch.Size] = dataclasses.field(repr=False)
    buffers: frozenset[str] = dataclasses.field(repr=False)

    def keys_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """The keys that are loaded under one of several names, in the order of the names.

        Args:
            names: all names of one tensor of the model.
        """
        return tuple(key for name in names for key, loaded in self.names.items() if loaded == name)

    def outside(self) -> list[str]:
        """The keys that the class does not have, neither as a tensor nor as a buffer that it does not save."""
        return [key for key, name in self.names.items() if name not in self.tensors and name not in self.buffers]


def loaded_keys(model: Any, keys: Iterable[str], unwrapped: Mapping[str, str] | None = None) -> LoadedKeys:
    """Apply transformers' renaming of a model class to the keys of a checkpoint.

    Args:
        model: a transformers model, which may be on the meta device.
        keys: keys of the checkpoint, as on disk.
        unwrapped: key -> key to be renamed in its place, for keys of a wrapped model.

    Returns:
        The names; the result does not depend on the order of ``keys``.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    state = model.state_dict()
    prefix = model.base_model_prefix
    # Some renamings remember the keys that they have seen, so that they are made anew for each checkpoint.
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    names, computed = {}, set()
    plain = {key: (unwrapped or {}).get(key, key) for key in keys}
    for key in sorted(plain, key=lambda key: dot_natural_key(plain[key])):  # the order in which transformers loads them
        name, pattern = rename_source_key(plain[key], renamings, converters, prefix, state)
        if name not in state and plain[key] in state:
            name, pattern = rename_source_key(plain[key], [], [], prefix, state)
        names[key] = name
        if pattern is not None:
            computed.add(key)
    saved = set(state)
    buffers = frozenset(name for name, _ in model.named_buffers() if name not in saved)
    return LoadedKeys(names, frozenset(computed), {name: tensor.shape for name, tensor in state.items()}, buffers)
