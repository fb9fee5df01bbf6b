"""The options of a transfer, documented once and used by the Python API and the command line alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from .errors import input_error

METHODS = (
    "salt", "focus", "clp", "clp-plus", "omp", "sava-affine", "sava-orthogonal", "blend", "wechsel", "ofa",
    "subword-mean", "subword-length", "subword-asymmetric", "multivariate", "mean", "normal", "zero",
)  # fmt: skip
OVERLAPS = ("exact", "word-start", "case")
CHAT_TEMPLATES = ("target", "source", "none")
DTYPES = ("float32", "bfloat16", "float16")
LINKS = ("copy", "hard")
MOST_PADDING = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How new rows are built and what is written.

    Attributes:
        method: one of :data:`METHODS`. ``salt`` is the paper's: local least squares on the sparsemax support.
        ridge: ridge strength as a fraction of the neighbours' mean squared norm, in [0, inf), for ``salt``, ``omp``,
            ``sava-affine`` and ``blend``; ``None`` is none, or 1 for ``blend``.
        center: fit with an intercept: both spaces are centred on the support's mean first; for ``salt`` and ``omp``.
        max_support: keep at most this many anchors, nearest first, in [1, inf), for ``salt``, ``focus``, ``clp-plus`` and
            ``omp``; ``None`` keeps all, or 64 for ``omp``.
        blend_weight: share of the subword mean in ``blend``, in [0, 1].
        source_auxiliary: vectors of the source's language, for ``wechsel``: the kinds that ``--auxiliary`` takes but ``plm``.
        dictionary: text file with a source word and its translation a line, for ``wechsel``.
        overlap: loosest match that makes a token shared: ``exact`` (same bytes, same word start), ``word-start``
            (the word-start flag may differ), ``case`` (case may differ too).
        special_overrides: target special token -> source token whose row it takes, both by spelling.
        chat_template: whose template the result carries: ``target``'s, the ``source``'s (its special tokens are
            added to the tokenizer) or ``none``.
        pad_to_multiple_of: round the number of rows up to a multiple of this, in [1, 65536]; ``None`` adds no rows.
        seed: seed of the drawn rows, in [0, 2**63).
        heldout: share of the anchors that the self-check hides, in [0, 0.5]; 0 skips the check.
        device: where the operators run: ``auto``, ``cpu`` or ``cuda[:index]``.
        dtype: dtype of the written embedding rows, one of :data:`DTYPES`; ``None`` keeps the checkpoint's own.
        link: how weight files without embedding rows come into the new folder: ``copy`` (sharing their blocks with the
            source's where the file system can) or ``hard`` (the source's own files under a second name: no room taken, but
            whoever changes one in place, as saving a model into either folder may, changes both).
        gguf_file: name of the GGUF file inside the source folder, for a source that is one.
        source_revision: revision of the source on the hub; ``None`` is the default branch.
        target_revision: revision of the target on the hub; ``None`` is the default branch.
        trust_remote_code: let transformers run code that a checkpoint brings along.
        force: replace an existing output folder.

    Raises:
        InputError: a value is out of its range or not one of the names.
    """

    method: str = "salt"
    ridge: float | None = None
    center: bool = False
    max_support: int | None = None
    blend_weight: float = 0.5
    source_auxiliary: str | None = None
    dictionary: str | None = None
    overlap: str = "exact"
    special_overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat_template: str = "target"
    pad_to_multiple_of: int | None = None
    seed: int = 0
    heldout: float = 0.05
    device: str = "auto"
    dtype: str | None = None
    link: str = "copy"
    gguf_file: str | None = None
    source_revision: str | None = None
    target_revision: str | None = None
    trust_remote_code: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("overlap", self.overlap, OVERLAPS)
        _one_of("chat_template", self.chat_template, CHAT_TEMPLATES)
        _one_of("link", self.link, LINKS)
        if self.dtype is not None:
            _one_of("dtype", self.dtype, DTYPES)
        pairs = self.special_overrides
        if not isinstance(pairs, Mapping) or not all(
            isinstance(token, str) for pair in pairs.items() for token in pair
        ):
            raise input_error("special_overrides", repr(pairs), "target token -> source token", "spell both as text")
        if self.ridge is not None and not (_number(self.ridge) and self.ridge >= 0):
            raise input_error(
                "ridge", repr(self.ridge), "a finite number >= 0", "give e.g. --ridge 0.01 or leave it out"
            )
        if self.max_support is not None and not _whole(self.max_support, 1, math.inf):
            raise input_error("max_support", repr(self.max_support), "a whole number >= 1", "leave it out for no limit")
        if self.pad_to_multiple_of is not None and not _whole(self.pad_to_multiple_of, 1, MOST_PADDING):
            expected = f"a whole number in [1, {MOST_PADDING}]"
            raise input_error(
                "pad_to_multiple_of", repr(self.pad_to_multiple_of), expected, "leave it out for no rows more"
            )
        if not (_number(self.blend_weight) and 0 <= self.blend_weight <= 1):
            raise input_error("blend_weight", repr(self.blend_weight), "a share in [0, 1]", "use 0.5 for half of each")
        if not _whole(self.seed, 0, 2**63 - 1):
            raise input_error("seed", repr(self.seed), "a whole number in [0, 2**63)", "choose another seed")
        if not (_number(self.heldout) and 0 <= self.heldout <= 0.5):
            raise input_error("heldout", repr(self.heldout), "a share in [0, 0.5]", "use 0 to skip the self-check")

    def to_json(self) -> dict[str, object]:
        """Plain values of all options, as saved in ``saltlm.json``."""
        return {**dataclasses.asdict(self), "special_overrides": dict(self.special_overrides)}


def _whole(value: object, least: int, most: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        import difflib

        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        raise input_error(name, repr(value), "one of " + ", ".join(known), hint)
