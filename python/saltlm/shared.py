"""What several transfers have in common, read and computed once: models, alignments, vectors; bounded, keyed by content."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from .alignment.align import Alignment, Tokens, align, load_tokens
from .alignment.causal_tokenizer import causal_tokenizer
from .alignment.roles import real_roles
from .alignment.template_markers import marker_pairs
from .config import TransferConfig
from .model.checkpoint import Donor, Source, load_donor, load_source
from .model.tokenizer import TOKENIZER_FILES
from .vectors.auxiliary import Auxiliary, auxiliary_files, load_auxiliary

TOKENIZER_BYTES = (
    500  # of memory for a token: vocabulary in Python and in Rust, measured on vocabularies of 20 to 250 thousand
)


class Shared:
    """Results that later transfers of this process may need again.

    What one transfer reads never changes what another gives: an entry is found only under the same content and options.

    Attributes:
        limit: bytes that entries may take together; the least recently used go first.
        hits: how often an entry was found.
        misses: how often one was made.
        saved: seconds that making the found ones had taken.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self.saved = 0.0
        self._kept: collections.OrderedDict[Hashable, tuple[Any, int, float]] = collections.OrderedDict()

    def __repr__(self) -> str:
        return f"Shared({len(self._kept)} entries, {self.bytes:,} of {self.limit:,} bytes, {self.hits} hits)"

    @property
    def bytes(self) -> int:
        """What the entries take, by estimate."""
        return sum(size for _, size, _ in self._kept.values())

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """The entry under ``key``, made if it is not there; ``size`` estimates its bytes."""
        value = self.find(key)
        if value is None:
            start = time.perf_counter()
            value = make()
            self.put(key, value, size(value), time.perf_counter() - start)
        return value

    def find(self, key: Hashable) -> Any:
        """The entry under ``key``, ``None`` where there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        value, _, seconds = self._kept[key]
        self.hits += 1
        self.saved += seconds
        return value

    def put(self, key: Hashable, value: Any, size: int, seconds: float) -> None:
        """Keep an entry that took ``seconds`` to make, where its bytes fit the limit."""
        self.misses += 1
        if size <= self.limit:
            self.make_room(size)
            self._kept[key] = (value, size, seconds)

    def make_room(self, size: int) -> None:
        """Let go what has not been used for longest, until ``size`` bytes more fit the limit."""
        while self._kept and self.bytes + size > self.limit:
            self._kept.popitem(last=False)

    def shrink(self, limit: int) -> None:
        """Set another limit, and let go what exceeds it."""
        self.limit = limit
        self.make_room(0)

    def source(self, name: str | Path, config: TransferConfig) -> Source:
        """:func:`~saltlm.model.checkpoint.load_source`."""
        file, revision, trust = config.gguf_file, config.source_revision, config.trust_remote_code
        key = ("source", str(name), file, revision, trust, stamp(name))
        return self.get(
            key,
            lambda: load_source(name, gguf_file=file, revision=revision, trust_remote_code=trust),
            _model_bytes,
        )

    def donor(self, name: str | Path, config: TransferConfig) -> Donor:
        """:func:`~saltlm.model.checkpoint.load_donor`."""
        revision, trust = config.target_revision, config.trust_remote_code
        key = ("donor", str(name), revision, trust, stamp(name))
        return self.get(key, lambda: load_donor(name, revision=revision, trust_remote_code=trust), _model_bytes)

    def aligned(self, model: Source, donor: Donor, config: TransferConfig) -> tuple[Any, Alignment]:
        """The new tokenizer, and its alignment to the source's; models that bring the same tokenizer files share them."""
        source_key, target_key, needs_pad = _tokenizer_key(model), _tokenizer_key(donor), _needs_pad(model, config)
        template, markers = _template(config), _markers(model, config)

        def make() -> tuple[Any, Tokens]:
            tokenizer = causal_tokenizer(
                donor.tokenizer, model.tokenizer, chat_template=template, needs_pad=needs_pad, markers=markers
            )
            # Roles that another token stands in for change no row.
            roles = real_roles(tokenizer, donor.tokenizer, model.tokenizer)
            return tokenizer, dataclasses.replace(load_tokens(tokenizer, "target"), roles=roles)

        tokens = self.get(("tokens", source_key), lambda: load_tokens(model.tokenizer, "source"), _table_bytes)
        key = ("tokenizer", source_key, target_key, template, needs_pad, markers)
        tokenizer, target = self.get(key, make, lambda pair: _table_bytes(pair[1]))
        pairs = marker_pairs(tokenizer, model.tokenizer) if template == "source" else {}
        overrides = tuple(sorted({**pairs, **config.special_overrides}.items()))
        alignment = self.get(
            ("alignment", source_key, target_key, template, needs_pad, markers, config.overlap, overrides),
            lambda: align(tokens, target, overlap=config.overlap, special_overrides=dict(overrides)),
            lambda result: (
                result.kind.nbytes + result.source_id.nbytes + result.cover_offsets.nbytes + result.cover_ids.nbytes
            ),
        )
        return tokenizer, alignment

    def vectors(
        self, spec: str | Path, alignment: Alignment, model: Source, donor: Donor, config: TransferConfig
    ) -> Auxiliary:
        """:func:`~saltlm.load_auxiliary` for the target tokens; one file's serve every source with this target."""
        files = tuple(stamp(name) for name in auxiliary_files(spec))
        added = _added_tokens(model, config)
        key = ("vectors", str(spec), files, _tokenizer_key(donor), _template(config), added)
        return self.get(key, lambda: load_auxiliary(spec, alignment.target.words()), _vector_bytes)


def basis_of(donor: Donor, vectors: Auxiliary | None, model: Source, config: TransferConfig) -> Hashable:
    """Stands for the content of the target's PLM rows and of its tokens' vectors, as far as coefficients hang on them."""
    added = _added_tokens(model, config)
    described = None if vectors is None else json.dumps(vectors.description, sort_keys=True, default=str)
    return (
        str(donor.folder),
        tuple(sorted(donor.files.items())),
        _tokenizer_key(donor),
        _template(config),
        added,
        described,
    )


def stamp(name: str | Path) -> tuple[Hashable, ...]:
    """Stands for the content of a local file, or of the files of a folder; empty for what is not here (a name of the hub).

    Size, time of change and inode: within one process's life they tell a file from what has taken its place, at no cost.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):
        files = sorted(file for pattern in ("*", "vocab/*", "*/vocab/*") for file in path.glob(pattern))
        return tuple((str(file.relative_to(path)), *stamp(file)) for file in files if file.is_file())
    if not os.path.isfile(path):
        return ()
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def _template(config: TransferConfig) -> str:
    """The chat template that the target's tokenizer gets; the source's own tokenizer, where it is kept, has its own."""
    return "target" if config.keep_source_vocabulary else config.chat_template


def _markers(model: Source, config: TransferConfig) -> tuple[str, ...]:
    """The source's markers that the target's tokenizer gets; the source's own tokenizer, where it is kept, has them."""
    return () if config.keep_source_vocabulary else model.markers


def _needs_pad(model: Source, config: TransferConfig) -> bool:
    """Whether the target's tokenizer must have a padding token; the source's own tokenizer, where it is kept, has one."""
    return model.needs_pad and not config.keep_source_vocabulary


def _added_tokens(model: Source, config: TransferConfig) -> Hashable:
    """Stands for the tokens that the target's vocabulary gets because of the source; ``None`` if there are none."""
    markers = _markers(model, config)
    added = _template(config) == "source" or _needs_pad(model, config) or markers
    return (_tokenizer_key(model), _needs_pad(model, config), markers) if added else None


def _tokenizer_key(loaded: Source | Donor) -> Hashable:
    """A tokenizer is what its files say, read as transformers does for the model's type."""
    files = tuple((name, loaded.files[name]) for name in TOKENIZER_FILES if name in loaded.files)
    own_code = loaded.name if any(loaded.folder.glob("*.py")) else None
    return (files, str(loaded.config.get("model_type")), type(loaded.tokenizer).__name__, own_code)


def _model_bytes(loaded: Source | Donor) -> int:
    rows = [loaded.input_rows, getattr(loaded, "output_rows", None), getattr(loaded, "output_bias", None)]
    rows += [table.rows for table in getattr(loaded, "tables", ())]
    mapped = sum(tensor.numel() * tensor.element_size() for tensor in rows if tensor is not None)
    return mapped + TOKENIZER_BYTES * len(loaded.tokenizer)


def _table_bytes(tokens: Tokens) -> int:
    return TOKENIZER_BYTES * tokens.vocabulary.size


def _vector_bytes(vectors: Auxiliary) -> int:
    return vectors.vectors.numel() * 4 + len(vectors.known)
