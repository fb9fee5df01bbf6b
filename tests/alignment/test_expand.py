"""An expanded tokenizer: old text is tokenized as before, every new token is reachable; and transfers with one."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_tiny import save_bert, save_llama
from tokenizers import Tokenizer
from tokenizers_tiny import TEXT, byte_level_bpe, sentencepiece_bpe, sentencepiece_unigram, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from saltlm.alignment.align import align
from saltlm.alignment.expand import Expansion, expand
from saltlm.cli.main import main
from saltlm.config import TransferConfig
from saltlm.errors import InputError
from saltlm.evaluation.evaluate import evaluate
from saltlm.inspection.rows import inspect
from saltlm.model.checkpoint import load_source
from saltlm.pipeline import transfer
from saltlm.rows.assembly import COMPOSED, COPIED, PADDING

ENGLISH = tuple(TEXT[:2])
SOURCES = {
    "byte_level_bpe": lambda: byte_level_bpe(330, ENGLISH),
    "sentencepiece_bpe": lambda: sentencepiece_bpe(360, ENGLISH),
    "sentencepiece_unigram": lambda: sentencepiece_unigram(80, ENGLISH),
}
TARGETS = ("sentencepiece_unigram", "wordpiece", "byte_level_bpe", "sentencepiece_bpe")
PAIRS = [(source, target) for source in SOURCES for target in TARGETS]
LETTERS = sorted(set("".join(TEXT)) | set(" \n\t1é中🙂ß▁Ġ"))


@functools.cache
def source_of(tokenizer_kind: str) -> PreTrainedTokenizerFast:
    return SOURCES[tokenizer_kind]()


@functools.cache
def expanded(source: str, target: str, rows: int = 0) -> tuple[Expansion, list[bytes]]:
    """The expansion, and the bytes of its new tokens."""
    alignment = align(source_of(source), tiny(target))
    expansion = expand(source_of(source), alignment, rows)
    data, offsets = alignment.target.token_bytes()
    return expansion, [data[offsets[token] : offsets[token + 1]].tobytes() for token in expansion.added]


def has_new(source: str, target: str, text: str) -> bool:
    """Whether the text spells a new token. The space that some tokenizers put before a text belongs to it."""
    # SentencePiece reads its own mark as a space, so a text may spell one by it.
    written = f" {text}".replace("▁", " ").encode()
    return any(token in written for token in expanded(source, target)[1])


@functools.cache
def old_words(source: str, target: str) -> list[str]:
    """Words of the training text that spell no new token."""
    return [word for word in sorted(set(" ".join(TEXT).split())) if not has_new(source, target, word)]


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# Words of the training text, which contain new tokens, and other words, which do not.
texts = st.lists(st.one_of(st.sampled_from(" ".join(TEXT).split()), st.text(LETTERS, max_size=6)), max_size=8).map(
    " ".join
)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@given(text=texts)
def test_text_decodes_as_with_the_source(source: str, target: str, text: str) -> None:
    new, old = expanded(source, target)[0].tokenizer, source_of(source)
    # Only a character that the source cannot spell may decode differently.
    if old.unk_token_id is None or old.unk_token_id not in ids(old, text):
        assert new.decode(ids(new, text)) == old.decode(ids(old, text))


@pytest.mark.parametrize(("source", "target"), PAIRS)
@given(data=st.data())
def test_text_without_a_new_token_is_tokenized_as_before(source: str, target: str, data: st.DataObject) -> None:
    known, letters = old_words(source, target), [letter for letter in LETTERS if not has_new(source, target, letter)]
    others = st.lists(st.one_of(st.sampled_from(known), st.text(letters, max_size=6)), max_size=8)
    text = data.draw(st.sampled_from(known))
    for word in data.draw(others):
        if not has_new(source, target, f"{text} {word}"):
            text += f" {word}"
    assert ids(expanded(source, target)[0].tokenizer, text) == ids(source_of(source), text)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@given(text=texts)
def test_only_new_tokens_change_anything(source: str, target: str, text: str) -> None:
    """Where the new segmentation uses no new token it is the old one."""
    expansion = expanded(source, target)[0]
    new = ids(expansion.tokenizer, text)
    if not any(token >= expansion.first for token in new):
        assert new == ids(source_of(source), text)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_added_token_comes_out_of_its_own_text(source: str, target: str) -> None:
    expansion, spelled = expanded(source, target)
    assert len(spelled) == expansion.counts["added"] > 20
    backend = expansion.tokenizer.backend_tokenizer
    for index, token in enumerate(spelled):
        expected = [expansion.first + index]
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue  # part of a character: no text of its own
        forms = [text, text.removeprefix(" ")]
        model = [piece.id for piece in backend.model.tokenize(backend.id_to_token(expected[0]))]
        assert expected in [*(ids(expansion.tokenizer, form) for form in forms), model], token
        if token.startswith(b" "):
            assert expected in [ids(expansion.tokenizer, form) for form in forms], token
    total = sum(expansion.counts[key] for key in ("added", "left_out"))
    assert expansion.counts["left_out"] < total / 3, expansion.counts


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_target_language_takes_fewer_tokens_and_english_no_more(source: str, target: str) -> None:
    tokenizer = expanded(source, target)[0].tokenizer
    foreign, english = "\n".join(TEXT[2:6]), "\n".join(ENGLISH)
    assert len(ids(tokenizer, foreign)) < 0.9 * len(ids(source_of(source), foreign))
    assert len(ids(tokenizer, english)) <= len(ids(source_of(source), english))


@pytest.mark.parametrize("source", SOURCES)
def test_old_ids_stay_and_holes_are_filled(source: str) -> None:
    old = source_of(source)
    expansion = expanded(source, "wordpiece", len(old) + 7)[0]
    assert expansion.first == len(old) + 7 and expansion.counts["fillers"] == 7
    assert len(expansion.tokenizer) == expansion.first + len(expansion.added)
    vocabulary = expansion.tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in old.get_vocab()} == old.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert expansion.tokenizer.special_tokens_map == old.special_tokens_map


def test_added_tokens_beside_the_model_keep_their_ids_and_come_first() -> None:
    source = byte_level_bpe(330, ENGLISH)
    source.add_tokens(["kissa", "<tool>"])
    before = source.get_vocab()
    expansion = expand(source, align(source, tiny("wordpiece")), len(source))
    after = expansion.tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    for text in ("<tool> kissa", "the cat<tool>kissa"):
        assert [i for i in ids(expansion.tokenizer, text) if i in (before["kissa"], before["<tool>"])] == [
            i for i in ids(source, text) if i in (before["kissa"], before["<tool>"])
        ]
    again = Tokenizer.from_str(expansion.tokenizer.backend_tokenizer.to_str())
    assert again.encode("<tool> kissat").ids == expansion.tokenizer.backend_tokenizer.encode("<tool> kissat").ids


def test_a_token_that_no_merge_builds_prevents_whole_word_lookup() -> None:
    """A source token that no merge builds would be used if whole words were looked up: old text would change."""
    source = byte_level_bpe(330, ENGLISH)
    content = json.loads(source.backend_tokenizer.to_str())
    content["model"]["vocab"]["Ġunmade"] = len(content["model"]["vocab"])
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    expansion = expand(odd, align(odd, tiny("wordpiece")), len(odd))
    assert expansion.counts["whole_words"] == 0 < expansion.counts["added"]
    unmade = odd.convert_tokens_to_ids("Ġunmade")
    assert unmade not in ids(odd, " unmade") + ids(expansion.tokenizer, " unmade")
    plain = expanded("byte_level_bpe", "wordpiece")[0]
    assert plain.counts["whole_words"] > 0 and plain.counts["added"] > expansion.counts["added"]


def test_kinds_that_cannot_be_added_to_are_refused(tmp_path, capsys) -> None:
    for tokenizer_kind in ("wordpiece",):
        with pytest.raises(
            InputError, match=f"keep_source_vocabulary: found a source tokenizer of kind {tokenizer_kind}"
        ):
            expand(tiny(tokenizer_kind), align(tiny(tokenizer_kind), tiny("byte_level_bpe")), 0)
    source = byte_level_bpe(330, ENGLISH)
    content = json.loads(source.backend_tokenizer.to_str())
    content["model"]["dropout"] = 0.1
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(InputError, match="with dropout"):
        expand(odd, align(odd, tiny("wordpiece")), 0)
    save_llama(tmp_path / "source", tiny("wordpiece"))
    save_bert(tmp_path / "target", tiny("sentencepiece_unigram"))
    arguments = ["--source", tmp_path / "source", "--target", tmp_path / "target", "--out", tmp_path / "out"]
    code = main(["transfer", *map(str, arguments), "--method", "zero", "--keep-source-vocabulary"])
    assert code == 2 and "of kind wordpiece" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def kept(request, tmp_path_factory):
    """A complete transfer that keeps the source's tokenizer, with padding rows and with rows that have no source token."""
    root = tmp_path_factory.mktemp("kept")
    tokenizer = byte_level_bpe(330, ENGLISH)
    save_llama(root / "source", tokenizer, tied=request.param, rows=len(tokenizer) + 6)
    save_bert(root / "target", tiny("sentencepiece_unigram"))
    config = TransferConfig(method="subword-mean", keep_source_vocabulary=True, pad_to_multiple_of=64)
    return root, transfer(root / "source", root / "target", None, root / "out", config)


def test_all_rows_of_the_source_stay_bit_for_bit(kept) -> None:
    root, done = kept
    old, new = load_source(root / "source"), load_source(root / "out")
    count = len(old.input_rows)
    assert torch.equal(new.input_rows[:count], old.input_rows) and len(new.input_rows) % 64 == 0
    if not old.tied:
        assert torch.equal(new.output_rows[:count], old.output_rows)
    built = done.summary["expansion"]["added"]
    assert (done.origin[:count] == COPIED).all() and (done.origin[count : count + built] == COMPOSED).all()
    assert built > 50 and (done.origin[count + built :] == PADDING).all()
    assert done.summary["counts"]["copied"] == count and done.summary["counts"]["composed"] == built
    assert new.config["vocab_size"] == len(done.origin)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert new.config[key] == old.config[key]


def test_new_rows_are_those_of_the_method(kept) -> None:
    root, done = kept
    source = load_source(root / "source").input_rows
    rows = inspect(root / "out")
    first = len(source)
    vocabulary = done.alignment.target
    data, offsets = vocabulary.token_bytes()
    by_text = {
        data[offsets[t] : offsets[t + 1]].tobytes().decode().replace(" ", "▁"): t for t in range(vocabulary.size)
    }
    for row in range(first, first + done.summary["expansion"]["added"]):
        cover = done.alignment.cover(by_text[rows.texts[row]])
        assert rows.parts(row)[0].tolist() == cover.tolist() and rows.rule(row) == "pieces"
        torch.testing.assert_close(done.input_rows[row], source[torch.from_numpy(cover.astype(np.int64))].mean(dim=0))


def test_stock_transformers_gives_old_text_the_old_logits(kept) -> None:
    root, done = kept
    old, new = (AutoTokenizer.from_pretrained(root / name) for name in ("source", "out"))
    text = " ".join(word for word in ENGLISH[0].split() if ids(old, f" {word}") == ids(new, f" {word}"))
    assert ids(old, text) == ids(new, text) and len(ids(old, text)) > 5
    before, after = (AutoModelForCausalLM.from_pretrained(root / name) for name in ("source", "out"))
    with torch.no_grad():
        one, other = (model(torch.tensor([ids(old, text)])).logits for model in (before, after))
    torch.testing.assert_close(other[..., : one.shape[-1]], one)
    assert len(new) <= after.get_input_embeddings().num_embeddings
    assert new.encode(TEXT[5]) == done.tokenizer.encode(TEXT[5]) and len(new.encode(TEXT[5])) < len(old.encode(TEXT[5]))


def test_evaluate_scores_it_in_bytes(kept) -> None:
    root, _ = kept
    old, new = (evaluate(root / name, documents=[TEXT[5]]) for name in ("source", "out"))
    assert new.bytes == old.bytes and new.tokens_per_byte < old.tokens_per_byte and 0 < new.bits_per_byte < 100


@pytest.mark.parametrize("method", ["salt", "blend", "multivariate"])
def test_methods_build_the_same_rows_as_for_a_replacement(method: str, pair, tmp_path) -> None:
    options = {"method": method, "heldout": 0}
    new, old = (
        transfer(pair.source, pair.target, pair.vectors, config=TransferConfig(keep_source_vocabulary=keep, **options))
        for keep in (True, False)
    )
    expansion = expand(load_source(pair.source).tokenizer, new.alignment, len(load_source(pair.source).input_rows))
    assert len(expansion.added) > 20
    if method != "multivariate":
        rows = new.input_rows[expansion.first : expansion.first + len(expansion.added)]
        built = old.origin[expansion.added] != 4  # drawn rows follow the number of rows drawn
        torch.testing.assert_close(rows[built], old.input_rows[expansion.added][built])
    assert new.input_rows.isfinite().all()


def test_options_without_effect_are_warned_about(pair) -> None:
    config = TransferConfig(method="zero", keep_source_vocabulary=True, chat_template="none")
    done = transfer(pair.source, pair.target, config=config, dry_run=True)
    assert "chat_template has no effect with keep_source_vocabulary" in done.summary["warnings"]
    assert done.summary["new_tokens"] == done.summary["expansion"]["added"] and done.out is None
