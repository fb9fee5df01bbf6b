"""Which tokens the self-check hides: whole groups of twins, a share of them, the same ones for the same seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from saltlm.heldout import MOST, hide

WORD = st.sampled_from(["Talo", "talo", "TALO", "kissa", "Kissa", "ä", "Ä", "x1", "y", "Straße", "STRASSE"])


@given(st.lists(WORD, min_size=1, max_size=60), st.floats(0, 0.5), st.integers(0, 5))
def test_groups_are_hidden_whole(words: list[str], share: float, seed: int) -> None:
    anchors = np.arange(len(words))
    kept, hidden = hide(words, anchors, share, seed)
    assert sorted([*kept, *hidden]) == anchors.tolist()
    assert len(hidden) <= len(words) * share
    assert not {words[i].casefold() for i in kept} & {words[i].casefold() for i in hidden}
    again = hide(words, anchors, share, seed)
    np.testing.assert_array_equal(again[1], hidden)


@given(st.integers(0, 3))
def test_a_share_of_distinct_words_is_met_exactly(seed: int) -> None:
    words = [f"w{i}" for i in range(400)]
    anchors = np.arange(0, 400, 2)
    assert len(hide(words, anchors, 0.1, seed)[1]) == 20
    assert not len(hide(words, anchors, 0.0, seed)[1])


def test_never_more_than_the_most() -> None:
    words = [f"w{i}" for i in range(3 * MOST)]
    assert len(hide(words, np.arange(len(words)), 0.5, 0)[1]) == MOST


def test_tokens_without_text_are_their_own_group() -> None:
    kept, hidden = hide([None] * 10, np.arange(10), 0.5, 0)
    assert len(hidden) == 5 and len(kept) == 5
