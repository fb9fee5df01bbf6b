"""Packing keeps all tokens but the tail, isolates documents, orders by the seed, and resumes at any block."""

from __future__ import annotations

import adapt_tiny
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_tiny import KINDS, tiny

from saltlm.adaptation.packing import Mixture, Packer, Stream, collate
from saltlm.errors import InputError

# Each text has a character that is not white space, as every document of a corpus has.
TEXT = st.tuples(st.text("abc ä\n🙂", max_size=20), st.sampled_from("abcä🙂"), st.text("abc ä\n🙂", max_size=9)).map(
    "".join
)
TEXTS = st.lists(TEXT, min_size=1, max_size=12)


def packer(tokenizer_kind: str = "byte_level_bpe", length: int = 8) -> Packer:
    return Packer(tiny(tokenizer_kind), rows=len(tiny(tokenizer_kind)), length=length)


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, length=st.integers(8, 20), tokenizer_kind=st.sampled_from(KINDS))
def test_blocks_hold_all_tokens_but_the_tail(texts, length, tokenizer_kind):
    pack = packer(tokenizer_kind, length)
    whole = np.concatenate(pack.encode(texts))
    blocks = pack.pack(texts)
    assert np.array_equal(blocks.tokens.ravel(), whole[: blocks.tokens.size])
    assert blocks.dropped == len(whole) - blocks.tokens.size < length


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, length=st.integers(8, 20))
def test_labels_and_positions_never_cross_a_document(texts, length):
    pack = packer(length=length)
    lengths = [len(ids) for ids in pack.encode(texts)]
    owner = np.repeat(np.arange(len(texts)), lengths)
    mixture = Mixture([_FixedBlocks(pack.pack(texts))], [1.0], offset=0, length=len(owner) // length)
    for number in range(len(mixture)):
        block = mixture[number]
        owners = owner[number * length : (number + 1) * length]
        new = np.r_[True, owners[1:] != owners[:-1]]
        assert np.array_equal(block["labels"] == -100, new)  # all other tokens are predicted from their own document
        assert np.array_equal(block["labels"][~new], block["input_ids"][~new])
        assert np.array_equal(block["position_ids"] == 0, new)
        assert (np.diff(block["position_ids"])[~new[1:]] == 1).all()


def test_bytes_of_the_blocks_add_up_to_those_of_the_text():
    texts = adapt_tiny.documents(40)
    total = sum(len(text.encode()) for text in texts)
    length = sum(len(ids) for ids in packer().encode(texts))
    assert packer(length=length).pack(texts).bytes == pytest.approx([total])
    # The missing bytes belong to the tail and to the first token of each block, which is not predicted.
    assert 0.8 * total < packer(length=8).pack(texts).bytes.sum() < total


def test_the_name_of_a_special_token_in_a_text_stays_text():
    pack = packer()
    ids = pack.encode(["a <|end|> b"])[0]
    assert (ids == pack.end).sum() == 1 and ids[-1] == pack.end and ids[0] == pack.start


def test_an_id_beyond_the_rows_is_refused():
    with pytest.raises(InputError, match="ids below the model's 40 rows"):
        Packer(tiny("byte_level_bpe"), rows=40, length=8).pack(["hyvää päivää"])


class _FixedBlocks:
    def __init__(self, blocks):
        self.blocks = blocks

    def block(self, number):
        return self.blocks.tokens[number], self.blocks.starts[number], float(self.blocks.bytes[number])


def stream(documents, **options) -> Stream:
    return Stream(lambda: iter(documents), packer(), **{"seed": 3, "window_documents": 7, **options})


def take(source: Stream, numbers) -> list:
    try:
        return [source.block(number)[0].tolist() for number in numbers]
    finally:
        source.close()


def test_the_order_depends_on_the_seed_and_the_pass():
    documents = adapt_tiny.documents(30)
    one, again, other = (take(stream(documents, seed=seed), range(150)) for seed in (3, 3, 4))
    assert one == again != other
    count = len(packer().pack(documents).tokens)
    blocks = take(stream(documents, window_documents=100), range(2 * count - 20))
    assert blocks[:count] != blocks[count:]
    assert len({tuple(block) for block in blocks[:count]}) > 0.9 * count  # a pass has each document once


def test_a_pass_has_every_document_once():
    texts = [f"{number:03d}" for number in range(50)]
    pack = packer(length=8)
    source = Stream(lambda: iter(texts), pack, seed=1, window_documents=16)
    tokens = [t for block in take(source, range(int(np.concatenate(pack.encode(texts)).size // 8) - 4)) for t in block]
    seen = tiny("byte_level_bpe").decode(tokens, skip_special_tokens=False).split("<|begin|>")
    seen = [text.removesuffix("<|end|>") for text in seen if text.endswith("<|end|>")]
    assert len(seen) == len(set(seen)) > 35 and set(seen) <= set(texts)


@settings(deadline=None, max_examples=15)
@given(first=st.integers(0, 160), read=st.integers(0, 160))
def test_a_stream_continues_at_any_block_from_its_marks(first, read):
    documents = adapt_tiny.documents(20)
    expected = take(stream(documents), range(170))
    stopped = stream(documents)
    take(stopped, range(read + 1))
    continued = stream(documents, marks=stopped.marks)
    assert take(continued, range(first, 170)) == expected[first:]
    assert continued.marks[: len(stopped.marks)] == stopped.marks


def test_a_stream_with_marks_tokenizes_no_earlier_window():
    documents = adapt_tiny.documents(60)
    whole = Stream(lambda: iter(documents), packer(), seed=3, window_documents=10)
    take(whole, range(180))

    encoded = []
    pack = packer()
    pack.encode, encode = lambda texts: (encoded.extend(texts), encode(texts))[1], pack.encode
    take(Stream(lambda: iter(documents), pack, seed=3, window_documents=10, marks=whole.marks), [175])
    assert len(encoded) <= 20  # the block's window and the next one


def test_too_little_text_is_refused():
    with pytest.raises(InputError, match="fewer tokens than one block of 8"):
        take(stream(["a"]), [0])
    with pytest.raises(InputError, match=r"in any 1 documents .*or shuffle more documents together"):
        take(stream(["a"] * 9, window_documents=1), [0])
    take(stream(["a"] * 9, window_documents=9), [0])


@settings(deadline=None, max_examples=30)
@given(shares=st.lists(st.floats(0.02, 0.3), min_size=1, max_size=3), offset=st.integers(0, 500))
def test_mixtures_keep_their_shares_from_any_offset(shares, offset):
    shares = [1 - sum(shares), *shares]
    whole = Mixture([None] * len(shares), shares, offset=0, length=2000)
    part = Mixture([None] * len(shares), shares, offset=offset, length=1500)
    assert np.array_equal(part.stream_of_block[offset:], whole.stream_of_block[offset : offset + 1500])
    for number, share in enumerate(shares):
        selected = whole.stream_of_block == number
        assert np.array_equal(whole.number_in_stream[selected], np.arange(selected.sum()))
        assert np.abs(np.cumsum(selected) - share * np.arange(1, 2001)).max() < 4


def test_shapes_and_dtypes_of_a_batch():
    source = stream(adapt_tiny.documents(20))
    batch = collate([Mixture([source], [1.0], offset=0, length=4)[i] for i in range(3)])
    source.close()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        **{name: (torch.int64, (3, 8)) for name in ("input_ids", "labels", "position_ids")},
        "bytes": (torch.float64, (3,)),
    }
