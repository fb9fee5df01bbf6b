"""Frozen rows and their optimizer state keep their bits; trained rows change as AdamW changes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saltlm.adaptation.row_mask import RowMask, new_rows
from saltlm.errors import InputError


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99),
    decay=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    steps=st.integers(1, 4),
)
def test_frozen_rows_keep_their_bits_and_trained_rows_change_as_without_them(seed, decay, dtype, steps):
    draw = torch.Generator().manual_seed(seed)
    trained = torch.rand(12, generator=draw).numpy() < 0.5
    trained[0], trained[1] = True, False
    start = torch.randn(12, 3, generator=draw).to(dtype)
    start[1, 0] = -0.0
    whole, alone = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[trained].clone())
    optimizer = torch.optim.AdamW([{"params": [whole], "weight_decay": 0.0, "lr": 0.1}])
    expected = torch.optim.AdamW([alone], weight_decay=decay, lr=0.1)
    mask = RowMask([whole], trained, decay)
    mask.attach(optimizer)
    for _ in range(steps):
        gradient = torch.randn(12, 3, generator=draw).to(dtype)
        whole.grad, alone.grad = gradient.clone(), gradient[trained].clone()
        mask.zero_frozen_gradients()
        optimizer.step()
        expected.step()
    assert bits(whole[~trained]) == bits(start[~trained])
    for name in ("exp_avg", "exp_avg_sq"):
        assert bits(optimizer.state[whole][name][~trained]) == bits(torch.zeros(int((~trained).sum()), 3, dtype=dtype))
    torch.testing.assert_close(whole[trained], alone)
    assert not torch.equal(whole[trained], start[trained])


def test_a_folder_without_a_record_of_its_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no record of where its rows came from.*--phases embeddings"):
        new_rows(tmp_path)


def test_new_rows_are_those_that_were_not_copied(tmp_path):
    import adapt_tiny

    rows = new_rows(adapt_tiny.transferred(tmp_path / "m"))
    assert np.array_equal(rows, np.arange(len(rows)) % 3 == 0)
