"""Where rows came from: recipes rebuild their rows with every method; the command shows and refuses."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_tiny import save_bert, save_llama
from tokenizers_tiny import byte_level_bpe, tiny

from saltlm.cli.main import main
from saltlm.config import METHODS, TransferConfig
from saltlm.errors import InputError
from saltlm.inspection.columns import unpack
from saltlm.inspection.page import page, write_page
from saltlm.inspection.rows import inspect, spelled
from saltlm.model.checkpoint import load_donor, load_source
from saltlm.pipeline import transfer
from saltlm.rows.recipe import MAX_ENTRIES, Recipe

LISTED = ("anchors", "pieces", "source tokens", "pieces and anchors")
WITH_LISTS = ("pieces and map", "pieces and all anchors", "map and anchors", "pieces, map and anchors")


@pytest.fixture(scope="module")
def folders(untied, tmp_path_factory):
    """Method -> folder of a transfer by the method, created on first use."""
    root, inspected = tmp_path_factory.mktemp("methods"), {}

    def folder(method: str, **options):
        key = method + "".join(f"-{value}" for value in options.values())
        if key not in inspected:
            config = TransferConfig(method=method, heldout=0, **options)
            transfer(untied.source, untied.target, untied.vectors, root / key, config)
            inspected[key] = inspect(root / key)
        return inspected[key]

    return folder


def lists(sizes: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Offsets, ids and weights of lists of these lengths, as a method returns them."""
    generator = np.random.default_rng(seed)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    ids = torch.from_numpy(generator.integers(0, 1000, int(offsets[-1])))
    return offsets, ids, torch.from_numpy(generator.normal(size=len(ids)))


@given(st.lists(st.integers(0, 3 * MAX_ENTRIES), max_size=8), st.integers(0, 99))
def test_the_largest_weights_are_kept_in_their_order(sizes: list[int], seed: int) -> None:
    offsets, ids, weights = lists(sizes, seed)
    recipe = Recipe.of(offsets, ids, weights)
    for row, size in enumerate(sizes):
        entries = slice(int(offsets[row]), int(offsets[row + 1]))
        best = sorted(sorted(range(size), key=lambda at: -abs(float(weights[entries][at])))[:MAX_ENTRIES])
        begin, end = recipe.offsets[row : row + 2].tolist()
        assert recipe.ids[begin:end].tolist() == ids[entries][best].tolist()
        assert recipe.weights[begin:end].tolist() == weights[entries][best].float().tolist()
        share = float(weights[entries][best].abs().sum() / weights[entries].abs().sum()) if size > MAX_ENTRIES else 1.0
        assert float(recipe.kept[row]) == pytest.approx(share, rel=1e-6)


@given(st.lists(st.integers(0, 2 * MAX_ENTRIES), min_size=1, max_size=8), st.integers(0, 99), st.randoms())
def test_parts_at_new_rows_equal_the_original_parts(sizes: list[int], seed: int, random) -> None:
    recipe = Recipe.of(*lists(sizes, seed))
    places = random.sample(range(20), len(sizes))
    cut = random.randint(0, len(sizes))
    rows = torch.arange(len(sizes))
    parts = [(torch.tensor(places)[part], recipe.pick(part)) for part in (rows[cut:], rows[:cut])]
    every = Recipe.scattered(20, parts)
    for row in range(20):
        begin, end = every.offsets[row : row + 2].tolist()
        if row in places:
            one = recipe.pick(torch.tensor([places.index(row)]))
            assert every.ids[begin:end].tolist() == one.ids.tolist() and every.kept[row] == one.kept[0]
            assert every.weights[begin:end].tolist() == one.weights.tolist()
        else:
            assert begin == end and every.kept[row] == 1


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("wechsel", "ofa")])
def test_a_row_equals_its_recipe(method: str, folders, untied) -> None:
    """A row with a list equals the weighted sum of source rows that the list names, for every method."""
    rows = folders(method)
    source, built = load_source(untied.source).input_rows.double(), load_source(rows.folder).input_rows.double()
    seen = set()
    for row in range(len(rows.norms)):
        rule, (ids, weights) = rows.rule(row), rows.parts(row)
        seen.add(rule)
        assert (rule == "copy") == (rows.arrays["source_id"][row] >= 0)
        assert rule != "none" and len(ids) <= MAX_ENTRIES and 0 < rows.arrays["rule_kept"][row] <= 1
        assert len(ids) > 0 if rule in LISTED else rule in WITH_LISTS or not len(ids)
        if rule in LISTED[:3]:
            assert rows.arrays["rule_kept"][row] < 1 or len(ids) == rows.arrays["support_size"][row]
        if rule in LISTED and rows.arrays["rule_kept"][row] == 1:
            expected = torch.from_numpy(weights).double() @ source[torch.from_numpy(ids).long()]
            # Coefficients of up to dozens, kept in float32, that nearly cancel.
            size = float(torch.from_numpy(weights).double().abs() @ source[torch.from_numpy(ids).long()].norm(dim=1))
            assert (built[row] - expected).norm() <= 1e-6 * size, (row, rows.texts[row])
    first = {"salt": "anchors", "blend": "pieces and map", "mean": "mean", "zero": "zeros", "clp": "all anchors"}
    assert first.get(method, "copy") in seen


@pytest.mark.parametrize("method", ["salt", "focus", "clp-plus", "omp"])
def test_a_blend_with_few_anchors_is_one_list(method: str, folders, untied) -> None:
    """A row of pieces and anchors equals the weighted sum of both, unless its list was cut."""
    rows = folders("blend", blend_with=method, blend_weight=0.25)
    source, built = load_source(untied.source).input_rows.double(), load_source(rows.folder).input_rows.double()
    whole = [
        row
        for row in range(len(rows.norms))
        if rows.rule(row) == "pieces and anchors" and rows.arrays["rule_kept"][row] == 1
    ]
    assert len(whole) > 20
    for row in whole:
        ids, weights = (torch.from_numpy(part) for part in rows.parts(row))
        parts = source[ids.long()]
        size = float(weights.double().abs() @ parts.norm(dim=1))
        assert (built[row] - weights.double() @ parts).norm() <= 1e-6 * size


@given(
    st.lists(st.tuples(st.integers(0, MAX_ENTRIES), st.integers(0, MAX_ENTRIES)), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_lists_side_by_side(sizes: list[tuple[int, int]], seed: int) -> None:
    one, other = (Recipe.of(*lists([pair[side] for pair in sizes], seed + side)) for side in (0, 1))
    factor = torch.linspace(0.5, 2, len(sizes))
    both = one.plus(other, factor)
    for row in range(len(sizes)):
        ends = [slice(*part.offsets[row : row + 2].tolist()) for part in (one, other, both)]
        ids = one.ids[ends[0]].tolist() + other.ids[ends[1]].tolist()
        weights = torch.cat([one.weights[ends[0]].double(), other.weights[ends[1]].double() * float(factor[row])])
        best = sorted(sorted(range(len(ids)), key=lambda at: -abs(float(weights[at])))[:MAX_ENTRIES])
        assert both.ids[ends[2]].tolist() == [ids[at] for at in best]
        torch.testing.assert_close(both.weights[ends[2]].double(), weights[best], rtol=1e-6, atol=0)
        share = float(weights[best].abs().sum() / weights.abs().sum()) if len(ids) > MAX_ENTRIES else 1.0
        assert float(both.kept[row]) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("length", [1.0, 1.5])
def test_a_blends_pieces_and_map_share_the_row(length: float, folders, untied) -> None:
    blend, mapped = folders("blend", blend_weight=0.25, blend_length=length), folders("sava-affine", ridge=1.0)
    source, built = load_source(untied.source).input_rows.double(), load_source(blend.folder).input_rows.double()
    both = load_source(mapped.folder).input_rows.double()
    size = len(load_donor(untied.target).input_rows)
    middle = built[[row for row in range(size) if blend.origin(row) == "copied"]].mean(dim=0)
    rows = [row for row in range(len(blend.norms)) if blend.rule(row) == "pieces and map"]
    assert len(rows) > 20
    for row in rows:
        ids, weights = blend.parts(row)
        assert blend.map_weight(row) == pytest.approx(0.75 * length, abs=1e-6)
        assert blend.mean_weight(row) == pytest.approx(1 - length, abs=1e-6)
        parts = torch.from_numpy(weights).double() @ source[torch.from_numpy(ids).long()]
        expected = parts + 0.75 * length * both[row] + blend.mean_weight(row) * middle
        torch.testing.assert_close(built[row], expected, rtol=1e-5, atol=1e-5)


def test_rows_that_were_drawn_have_no_list(tmp_path) -> None:
    """A row that overflows the written dtype is drawn at random, so its list must be removed."""
    source = save_llama(tmp_path / "source", tiny("byte_level_bpe"), dtype=torch.float16)
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"][40:] = 60000.0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    target = save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    transfer(source, target, None, tmp_path / "out", TransferConfig(method="omp", heldout=0))
    rows = inspect(tmp_path / "out")
    drawn = [row for row in range(len(rows.norms)) if rows.origin(row) == "drawn"]
    assert drawn and all(rows.rule(row) == "random" and not len(rows.parts(row)[0]) for row in drawn)


def test_tokens_are_found_by_text_spelling_and_id(folders) -> None:
    rows = folders("salt")
    for row in range(len(rows.norms)):
        assert rows.find(f"#{row}") == [row]
        text = rows.texts[row]
        if text and not re.fullmatch(r"#\d+", text):
            assert row in rows.find(text) and row in rows.find(text.removeprefix("▁") or text)
    assert rows.find("▁the") == [row for row, text in enumerate(rows.texts) if text == "▁the"]
    assert rows.find("the") == [row for row, text in enumerate(rows.texts) if text in ("the", "▁the")]
    assert rows.tokens.find("##en") in rows.find("##en")


def test_the_command_shows_rows_and_all(folders, capsys) -> None:
    rows = folders("salt")
    solved = [row for row in range(len(rows.norms)) if rows.origin(row) == "solved"]
    assert main(["inspect", str(rows.folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["counts"] == rows.summary["counts"] and sum(shown["rules"].values()) == shown["rows"]
    assert shown["worst_residuals"][0]["residual"] == max(rows.arrays["residual"][solved])
    assert shown["largest_norms"][0]["norm"] >= shown["smallest_norms"][-1]["norm"]
    assert main(["inspect", str(rows.folder), f"#{solved[0]}", "#0", f"#{solved[0]}", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)["tokens"]
    assert [entry["id"] for entry in details] == [solved[0], 0]
    assert len(details[0]["parts"]) == details[0]["support_size"] and details[1]["origin"] in ("role", "copied")
    assert main(["inspect", str(rows.folder), f"#{solved[0]}"]) == 0
    table = capsys.readouterr().out
    assert all(f"{part['weight']:+.4f}" in table for part in details[0]["parts"])
    assert main(["inspect", str(rows.folder)]) == 0
    printed = capsys.readouterr().out
    assert "worst residual" in printed and printed.split("|")[1].startswith(f" {len(rows.norms)} rows: ")


def test_source_tokens_are_shown_with_their_text(folders, untied) -> None:
    rows = folders("salt")
    from saltlm.alignment.tokens import load_tokens

    data, offsets = load_tokens(untied.source).vocabulary.token_bytes()
    for source in range(len(offsets) - 1):
        assert rows.source_text(source) == spelled(data[offsets[source] : offsets[source + 1]].tobytes())
    copied = np.flatnonzero(rows.arrays["origin"] == 0)
    assert len(copied) and all(rows.texts[row] == rows.source_text(rows.arrays["source_id"][row]) for row in copied)


class Page(html.parser.HTMLParser):
    """Collects the elements and the content of the data script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.data = self.title = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if attributes.get("id") == "data":
            self.data += data
        elif tag == "title":
            self.title += data


def test_the_page_holds_every_row_and_no_token_can_break_out(tmp_path) -> None:
    nasty = ["</script><script>alert(1)</script>", "<!--", "&lt;b&gt;", '"><img src=x onerror=alert(1)>']
    target = byte_level_bpe()
    target.add_tokens(nasty)
    source = save_llama(tmp_path / "source", tiny("byte_level_bpe"))
    save_bert(tmp_path / "target", target)
    out = tmp_path / "<b>out&amp"
    transfer(source, tmp_path / "target", None, out, TransferConfig(method="subword-mean"))
    rows = inspect(out)
    write_page(rows, tmp_path / "rows.html")
    text = (tmp_path / "rows.html").read_text(encoding="utf-8")
    parsed = Page(text)
    _, data = unpack(parsed.data)
    assert data["text"] == rows.texts and {n.replace(" ", "▁") for n in nasty} <= set(rows.texts)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2 and "img" not in tags and "b" not in tags
    assert parsed.title.startswith("<b>out&amp")
    assert not any(value and "://" in value for _, attributes in parsed.elements for value in attributes.values())
    assert not re.search(
        r"https?:|url\((?!#)|@import|\bfetch\(|src=",
        text.replace(html.escape(nasty[3]), "").replace(html.escape(nasty[3].replace(" ", "▁")), ""),
    )
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    first = np.concatenate([[0], np.cumsum(data["parts"].astype(np.int64))])
    for row in range(len(rows.norms)):
        ids, weights = rows.parts(row)
        shown = slice(first[row], first[row + 1])
        assert data["parts"][row] <= 8 and data["parts"][row] + data["more"][row] == len(ids)
        assert set(data["source_id"][data["part_source"][shown]].tolist()) <= set(ids.tolist())
        if len(ids) <= 8:
            np.testing.assert_allclose(data["part_weight"][shown], weights, rtol=2**-9)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert "".join(page(rows)) == text


@pytest.mark.parametrize("line", [0x2028, 0x2029, 0x202E, 0x0A, 0x7F, 0xA0])
def test_invisible_characters_are_shown_by_number(line: int) -> None:
    assert chr(line) not in spelled(f"a{chr(line)}b".encode()) and spelled(chr(line).encode()).startswith("\\")


def refused(capsys, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err and err.count("\n") == 1
    return err


def test_bad_tokens_and_output_paths_are_refused(folders, tmp_path, capsys, untied) -> None:
    folder = folders("salt").folder
    assert "did you mean" in refused(capsys, "inspect", folder, "katzze")
    assert "an id below" in refused(capsys, "inspect", folder, "#99999")
    assert "no saltlm.json" in refused(capsys, "inspect", untied.source)
    assert "no saltlm.json" in refused(capsys, "inspect", tmp_path / "nowhere")
    assert "no folder" in refused(capsys, "inspect", folder, "--html", tmp_path / "no" / "rows.html")
    assert "the folder" in refused(capsys, "inspect", folder, "--html", tmp_path)
    assert not list(tmp_path.iterdir())


def broken(folder, change: str) -> None:
    """Break a copied folder in one way."""
    from safetensors.numpy import load_file, save_file

    path = folder / "provenance.safetensors"
    arrays = load_file(path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "json":
        (folder / "saltlm.json").write_text("[1, 2")
    elif change == "list":
        (folder / "saltlm.json").write_text("[1, 2]")
    elif change == "newer":
        summary = json.loads((folder / "saltlm.json").read_text())
        (folder / "saltlm.json").write_text(json.dumps({**summary, "schema_version": 99}))
    else:
        {
            "lacks": lambda: arrays.pop("rule_ids"),
            "type": lambda: arrays.update(rank=arrays["rank"].astype(np.int64)),
            "short": lambda: arrays.update(status=arrays["status"][:-1].copy()),
            "bounds": lambda: arrays["rule_offsets"].__setitem__(3, 10**9),
            "beyond": lambda: arrays["rule_ids"].__setitem__(0, 10**6),
            "code": lambda: arrays["origin"].__setitem__(0, 99),
            "core": lambda: [arrays.pop(name) for name in ("origin", "source_id", "status")],
            "rows": lambda: arrays.update(
                {
                    n: arrays[n][:-1].copy()
                    for n in ("origin", "source_id", "support_size", "rank", "residual", "status", "rule", "rule_kept")
                },
                rule_offsets=np.concatenate([arrays["rule_offsets"][:-2], arrays["rule_offsets"][-1:]]),
            ),
        }[change]()
        save_file(arrays, path)


@pytest.mark.parametrize(
    "change", ["cut", "json", "list", "lacks", "type", "short", "bounds", "beyond", "code", "rows", "core", "newer"]
)
def test_a_broken_record_is_refused(change: str, folders, tmp_path) -> None:
    shutil.copytree(folders("salt").folder, tmp_path / "out")
    broken(tmp_path / "out", change)
    with pytest.raises(InputError, match=r"cannot be read|a record of|saltlm\.json: found a (broken file|list)"):
        inspect(tmp_path / "out")
