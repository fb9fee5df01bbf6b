"""Models whose positions depend on the padding id, and what a checkpoint needs to have the same positions with another one.

Two kinds are known, and saltlm recognizes both by what the model class does, not by its name:

- In the RoBERTa kind the table of positions is learned, and the first token of a text has position ``pad + 1``. With another
  padding id each token would read another row. The rows are moved by the difference of the ids, and the table grows or shrinks
  by it. The model then computes the same sums of the same numbers. To keep the source's padding id in config.json instead would
  be wrong: the class takes each token of that id for padding, and in the new vocabulary the id belongs to another token.
- In the XGLM kind the table of positions is computed when the model is loaded, and the row of the padding id is set to zero.
  Another padding id sets another row to zero, or lies outside the table. There is no stored table to change. The entry
  ``pad_token_id`` of config.json then becomes ``null``, if the class computes the same with it; the tokenizer and
  generation_config.json still name the padding token.

A small model of the class is run with the old and the new padding id, and its logits are compared. A change is used only if it
gives the logits of the source's padding id for a text without padding; a model for which there is none is refused.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..alignment.config_ids import refuses_null
from ..environment import quiet_transformers
from ..errors import input_error

if TYPE_CHECKING:
    from .checkpoint import Source

# Config keys of the longest input in tokens, the most common first.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")
# Sizes of the small model, by the names under which transformers' config classes have them.
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_hidden_layers": 1,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "num_key_value_heads": 2,
}
TEXT_LENGTH = 48  # tokens of the text that the small model reads
SPARE_TOKENS = 32  # token ids of the small model above all special ones
# The model of the source's own sizes is run instead of a small one if it has at most this many parameters.
MAX_PARAMETERS = 50_000_000


@dataclasses.dataclass(frozen=True)
class PadChange:
    """What a checkpoint needs so that another padding id does not change its positions.

    Attributes:
        config: key of config.json -> new value.
        tensors: key of the checkpoint -> new table of positions.
        warnings: what the user should know.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def needs_pad(folder: Path, raw: Mapping[str, Any], *, reads_pad: bool, trust_remote_code: bool) -> bool:
    """Whether a model cannot do without a padding id: its config class does not take ``null``, or its positions need one.

    Args:
        folder: the model folder.
        raw: content of its config.json.
        reads_pad: whether the model class reads the padding id when it runs.
        trust_remote_code: let transformers run code from the folder.
    """
    if refuses_null(raw, "pad_token_id"):
        return True
    if not reads_pad:
        return False
    probe = _Probe.of(_config(folder, trust_remote_code), None, trust_remote_code)
    return probe is not None and not probe.same_logits(None)


def keep_positions(source: Source, pad: int | None) -> PadChange:
    """What the checkpoint of a source needs so that its positions stay with another padding id.

    Args:
        source: the source model.
        pad: padding id of the new tokenizer; ``None`` if it has none.

    Raises:
        InputError: the class computes other positions with this padding id, and no change of the checkpoint makes up for it.
    """
    if not source.reads_pad:
        return PadChange()
    config = _config(source.folder, source.trust_remote_code)
    old = getattr(config, "pad_token_id", None)
    probe = _Probe.of(config, pad, source.trust_remote_code)
    if probe is None:
        return PadChange(
            warnings=(
                f"{source.architecture} reads pad_token_id when it runs, and no small model of it could be run: check that"
                " the new folder gives the logits of the source",
            )
        )
    if probe.same_logits(pad):
        return PadChange()
    side = f"source {source.name}"
    if pad is not None and (moved := probe.moved(pad)) is not None:
        key = config.attribute_map.get(moved.key, moved.key)
        size = getattr(config, moved.key) + moved.shift
        tensors = _moved_tables(source, moved.tables, moved.shift, side)
        note = f"the position rows are moved by {moved.shift}, because {source.architecture} counts positions from its pad id"
        if moved.shift > TEXT_LENGTH:
            note += f"; the table of positions has {size:,} rows now, {moved.shift:,} of them without use"
        return PadChange(config={key: size}, tensors=tensors, warnings=(note,))
    if probe.same_logits(None):
        note = (
            f"config.json has no pad_token_id, because {source.architecture} makes its table of positions from it; the"
            f" tokenizer pads with id {pad}. Leave the entry out if you train the folder with other tools"
        )
        return PadChange(config={"pad_token_id": None}, warnings=(note,))
    raise input_error(
        side,
        f"{source.architecture}, whose positions depend on the id of its padding token ({old}), and a target that pads with"
        f" id {pad}",
        "a target with the same id, or a class whose positions can be kept with another one",
        "choose another source or another target",
    )


def lost_positions(model: Any, positions: int) -> int:
    """Number of positions that no token can have, because the class begins to count after the padding id.

    Args:
        model: a transformers causal LM, also on the meta device.
        positions: number of positions by the config.
    """
    vocabulary = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return max(
        (
            table.padding_idx + 1
            for table in tables
            if table is not vocabulary and table.num_embeddings == positions and table.padding_idx is not None
        ),
        default=0,
    )


def _config(folder: Path, trust_remote_code: bool) -> Any:
    """The config of a folder's model, or of its part that reads text."""
    from transformers import AutoConfig

    with quiet_transformers():
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        return config.get_text_config()


def _moved_tables(source: Source, names: tuple[str, ...], shift: int, side: str) -> dict[str, torch.Tensor]:
    """The checkpoint's tables of positions, with each row moved by ``shift``.

    Args:
        source: the source model.
        names: names of the tables in the model.
        shift: new padding id minus the old one. The rows below the padding id are never used: they are dropped, or are zero.
        side: name of the model in messages.

    Raises:
        InputError: the checkpoint lacks a table.
    """
    moved = {}
    for name in names:
        keys = [key for key, loaded in source.names.items() if loaded == name]
        if not keys:
            raise input_error(side, f"no tensor {name}", "the table of positions in the weights", "fetch it again")
        for key in keys:
            moved[key] = _shifted(source.weights.tensor(key), shift)
    return moved


def _shifted(table: torch.Tensor, shift: int) -> torch.Tensor:
    return table[-shift:] if shift <= 0 else torch.cat([table.new_zeros(shift, *table.shape[1:]), table])


@dataclasses.dataclass(frozen=True)
class _Moved:
    """Tables of positions that can be moved.

    Attributes:
        tables: names of their parameters.
        key: config key of their number of rows.
        shift: new padding id minus the old one.
    """

    tables: tuple[str, ...]
    key: str
    shift: int


@dataclasses.dataclass(frozen=True)
class _Probe:
    """A small model of a class, and its logits for a text without padding.

    Attributes:
        config: of the small model.
        trust_remote_code: as for the source.
        parameters: name -> value.
        position_tables: names of the embeddings with a padding id, other than the vocabulary's.
        ids: int64 [1, n], the text.
        logits: [1, n, V] with the source's padding id.
    """

    config: Any
    trust_remote_code: bool
    parameters: Mapping[str, torch.Tensor]
    position_tables: tuple[str, ...]
    ids: torch.Tensor
    logits: torch.Tensor

    @property
    def pad(self) -> int | None:
        """The source's padding id."""
        return getattr(self.config, "pad_token_id", None)

    @staticmethod
    def of(config: Any, pad: int | None, trust_remote_code: bool) -> _Probe | None:
        """The probe of a source's config; ``None`` if neither a small model nor one of the source's sizes can be run.

        Args:
            config: the source's.
            pad: a padding id that the probe is asked about.
            trust_remote_code: let transformers run code from the source's folder.
        """
        for small in (True, False):
            sized = _sized(config, pad, small=small)
            probe = None if sized is None else _Probe._run(sized, trust_remote_code)
            if probe is not None:
                return probe
        return None

    @staticmethod
    def _run(config: Any, trust_remote_code: bool) -> _Probe | None:
        model = _built(config, trust_remote_code)
        if model is None:
            return None
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.5, generator=generator)
        # The largest ids: neither the old nor the new padding id, nor any other special token.
        ids = config.vocab_size - 1 - torch.arange(TEXT_LENGTH)[None] % (SPARE_TOKENS - 1)
        logits = _logits(model, ids)
        if logits is None:
            return None
        return _Probe(
            config=config,
            trust_remote_code=trust_remote_code,
            parameters=dict(model.named_parameters(remove_duplicate=False)),
            position_tables=_padded_tables(model, getattr(config, "pad_token_id", None)),
            ids=ids,
            logits=logits,
        )

    def same_logits(self, pad: int | None) -> bool:
        """Whether the class gives the same logits with another padding id and the same parameters."""
        if pad == self.pad:
            return True
        return self._gives_same_logits(self._with(pad), {})

    def moved(self, pad: int) -> _Moved | None:
        """The tables of positions whose rows, moved to another padding id, give the same logits; ``None`` without such."""
        old = self.pad
        if old is None or not self.position_tables:
            return None
        for key in POSITIONS:
            if isinstance(getattr(self.config, key, None), int):
                config = self._with(pad)
                setattr(config, key, getattr(config, key) + pad - old)
                tables = {name: _shifted(self.parameters[name], pad - old) for name in self.position_tables}
                if self._gives_same_logits(config, tables):
                    return _Moved(self.position_tables, key, pad - old)
        return None

    def _with(self, pad: int | None) -> Any:
        """The config with another padding id."""
        config = copy.deepcopy(self.config)
        config.pad_token_id = pad
        return config

    def _gives_same_logits(self, config: Any, changes: Mapping[str, torch.Tensor]) -> bool:
        """Whether a model of this config gives the same logits with the probe's parameters, apart from some changes."""
        model = _built(config, self.trust_remote_code)
        if model is None:
            return False
        values = {**self.parameters, **changes}
        with torch.no_grad():
            for name, parameter in model.named_parameters(remove_duplicate=False):
                value = values.get(name)
                if value is None or value.shape != parameter.shape:
                    return False
                parameter.copy_(value)
        logits = _logits(model, self.ids)
        if logits is None:
            return False
        return bool((logits - self.logits).abs().max() <= 1e-5 * self.logits.abs().max())


def _sized(config: Any, pad: int | None, *, small: bool) -> Any:
    """A copy of a config with room for a padding id and a text, and with small sizes if asked; ``None`` if that fails."""
    sized = copy.deepcopy(config)
    try:
        special = [
            value for key, value in sized.to_dict().items() if key.endswith("_token_id") and isinstance(value, int)
        ]
        sized.vocab_size = max([0, pad or 0, *special]) + 1 + SPARE_TOKENS
        if small:
            positions = (getattr(sized, "pad_token_id", None) or 0) + 1 + TEXT_LENGTH
            for name, size in {**SMALL, **dict.fromkeys(POSITIONS, positions)}.items():
                if isinstance(getattr(sized, name, None), int):
                    # Some classes have names that can be read and not be set.
                    with contextlib.suppress(NotImplementedError, AttributeError):
                        setattr(sized, name, size)
    except Exception:  # each config class has checks of its own, with errors of any type
        return None
    return sized


def _built(config: Any, trust_remote_code: bool) -> Any:
    """A model of a config in float32, in evaluation mode; ``None`` if the class cannot be built or is too large."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.dtype = torch.float32
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            if sum(parameter.numel() for parameter in model.parameters()) > MAX_PARAMETERS:
                return None
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).float().eval()
    except Exception:  # on sizes that do not fit each other, a model class may raise any error
        return None


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Logits of a text; ``None`` if the model cannot be run on it or gives no finite ones."""
    try:
        with quiet_transformers(), torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception:  # such as an index outside of a table
        return None
    return logits if bool(logits.isfinite().all()) else None


def _padded_tables(model: Any, pad: int | None) -> tuple[str, ...]:
    """Names of the weights of embeddings with this padding id, other than the vocabulary's."""
    vocabulary = model.get_input_embeddings()
    return tuple(
        f"{name}.weight"
        for name, module in model.named_modules()
        if pad is not None
        and isinstance(module, torch.nn.Embedding)
        and module is not vocabulary
        and module.padding_idx == pad
    )
