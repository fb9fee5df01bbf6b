"""Digests of files: equal to hashlib's of the same bytes, whatever the block size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from saltlm.files import hashing
from saltlm.files.hashing import sampled_digest, sha256_file, sha256_joined
from saltlm.vectors.auxiliary import file_digest

CONTENT = bytes(range(256)) * 10


@pytest.fixture(params=[1, 7, 1 << 20])
def file(request, tmp_path: Path, monkeypatch) -> Path:
    """A file, read in blocks of this many bytes."""
    monkeypatch.setattr(hashing, "READ_BYTES", request.param)
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.mark.parametrize("limit", [None, 0, 1, 14, 100, len(CONTENT), len(CONTENT) + 1])
def test_a_limit_hashes_the_first_bytes(file: Path, limit: int | None) -> None:
    assert sha256_file(file, limit=limit) == hashlib.sha256(CONTENT[:limit]).hexdigest()


def test_several_files_are_hashed_as_one(file: Path) -> None:
    (file.parent / "other").write_bytes(b"other")
    assert sha256_joined([file, file.parent / "other"]) == hashlib.sha256(CONTENT + b"other").hexdigest()


def test_a_spacy_folder_is_identified_by_table_and_keys(file: Path) -> None:
    folder = file.parent / "vocab"
    folder.mkdir()
    (folder / "key2row").write_bytes(b"keys")
    (folder / "vectors").write_bytes(b"table")
    expected = {"bytes": 9, "sha256": hashlib.sha256(b"tablekeys").hexdigest()}
    assert file_digest(file.parent) == file_digest(folder) == expected


def test_a_folder_is_hashed_with_its_names_and_a_large_file_by_a_sample(file: Path, monkeypatch) -> None:
    folder = file.parent / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b").write_bytes(b"bytes")
    (folder / "a").write_bytes(CONTENT)
    assert sampled_digest(file) == hashlib.sha256(CONTENT).hexdigest()
    assert sampled_digest(folder) == hashlib.sha256(b"a\0" + CONTENT + b"sub/b\0bytes").hexdigest()
    monkeypatch.setattr(hashing, "MAX_WHOLE_BYTES", len(CONTENT) - 1)
    monkeypatch.setattr(hashing, "SAMPLE_STEP", 1000)
    monkeypatch.setattr(hashing, "SAMPLE_BYTES", 10)
    sample = b"".join(CONTENT[at : at + 10] for at in (0, 1000, 2000, len(CONTENT) - 10))
    assert sampled_digest(file) == hashlib.sha256(str(len(CONTENT)).encode() + sample).hexdigest()
