"""What several transfers have in common, read and computed once: models, alignments, vectors; bounded, keyed by content."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from .align import Alignment, Tokens, align, load_tokens
from .auxiliary import Auxiliary, auxiliary_files, load_auxiliary
from .checkpoint import TOKENIZER_FILES, Donor, Source, load_donor, load_source
from .config import TransferConfig
from .new_tokenizer import causal_tokenizer

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
        if key in self._kept:
            self._kept.move_to_end(key)
            value, _, seconds = self._kept[key]
            self.hits += 1
            self.saved += seconds
            return value
        start = time.perf_counter()
        value = make()
        self.misses += 1
        taken = size(value)
        if taken <= self.limit:
            self._kept[key] = (value, taken, time.perf_counter() - start)
            self.shrink(self.limit)
        return value

    def shrink(self, limit: int) -> None:
        """Set another limit, and let go what exceeds it."""
        self.limit = limit
        while self._kept and self.bytes > limit:
            self._kept.popitem(last=False)

    def source(self, name: str | Path, config: TransferConfig) -> Source:
        """:func:`~saltlm.checkpoint.load_source`."""
        options = {
            "gguf_file": config.gguf_file, "revision": config.source_revision,
            "trust_remote_code": config.trust_remote_code,
        }  # fmt: skip
        key = ("source", str(name), *options.values(), stamp(name))
        return self.get(key, lambda: load_source(name, **options), _model_bytes)

    def donor(self, name: str | Path, config: TransferConfig) -> Donor:
        """:func:`~saltlm.checkpoint.load_donor`."""
        options = {"revision": config.target_revision, "trust_remote_code": config.trust_remote_code}
        key = ("donor", str(name), *options.values(), stamp(name))
        return self.get(key, lambda: load_donor(name, **options), _model_bytes)

    def aligned(self, model: Source, donor: Donor, config: TransferConfig) -> tuple[Any, Alignment]:
        """The new tokenizer, and its alignment to the source's; models that bring the same tokenizer files share them."""
        ours, theirs = _tokenizer_key(model), _tokenizer_key(donor)
        # A tokenizer that is only added to the source's brings nothing of the source along.
        template = "target" if config.keep_source_vocabulary else config.chat_template

        def make() -> tuple[Any, Tokens]:
            made = causal_tokenizer(donor.tokenizer, model.tokenizer, chat_template=template)
            return made, load_tokens(made, "target")

        tokens = self.get(("tokens", ours), lambda: load_tokens(model.tokenizer, "source"), _table_bytes)
        tokenizer, target = self.get(("tokenizer", ours, theirs, template), make, lambda made: _table_bytes(made[1]))
        overrides = tuple(sorted(config.special_overrides.items()))
        alignment = self.get(
            ("alignment", ours, theirs, template, config.overlap, overrides),
            lambda: align(tokens, target, overlap=config.overlap, special_overrides=config.special_overrides),
            lambda made: made.kind.nbytes + made.source_id.nbytes + made.cover_offsets.nbytes + made.cover_ids.nbytes,
        )
        return tokenizer, alignment

    def vectors(
        self, spec: str | Path, alignment: Alignment, model: Source, donor: Donor, config: TransferConfig
    ) -> Auxiliary:
        """:func:`~saltlm.load_auxiliary` for the target tokens; one file's serve every source with this target."""
        files = tuple(stamp(name) for name in auxiliary_files(spec))
        # Its template brings tokens along; with the source's vocabulary kept it is not taken, which is one entry more at worst.
        added = _tokenizer_key(model) if config.chat_template == "source" else None
        key = (
            "vectors",
            str(spec),
            files,
            _tokenizer_key(donor),
            config.chat_template,
            config.keep_source_vocabulary,
            added,
        )
        return self.get(key, lambda: load_auxiliary(spec, alignment.target.words()), _vector_bytes)


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
    found = path.stat()
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _tokenizer_key(loaded: Source | Donor) -> Hashable:
    """A tokenizer is what its files say, read as transformers does for the model's type."""
    files = tuple((name, loaded.files[name]) for name in TOKENIZER_FILES if name in loaded.files)
    own_code = loaded.name if any(loaded.folder.glob("*.py")) else None
    return (files, str(loaded.config.get("model_type")), type(loaded.tokenizer).__name__, own_code)


def _model_bytes(loaded: Source | Donor) -> int:
    rows = [loaded.input_rows, getattr(loaded, "output_rows", None), getattr(loaded, "output_bias", None)]
    mapped = sum(tensor.numel() * tensor.element_size() for tensor in rows if tensor is not None)
    return mapped + TOKENIZER_BYTES * len(loaded.tokenizer)


def _table_bytes(tokens: Tokens) -> int:
    return TOKENIZER_BYTES * tokens.vocabulary.size


def _vector_bytes(vectors: Auxiliary) -> int:
    return vectors.vectors.numel() * 4 + len(vectors.known)
