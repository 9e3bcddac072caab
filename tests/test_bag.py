from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigavim import bag
from gigavim.bag import BagConfig, GatedAttention, attend


def new_head() -> GatedAttention:
    torch.manual_seed(0)
    return GatedAttention(8, BagConfig(classes=3, hidden=4))


@given(st.permutations(range(6)))
def test_the_order_of_tokens_does_not_matter(order: list[int]) -> None:
    head, features = new_head(), torch.randn(1, 6, 8)

    torch.testing.assert_close(head(features[:, order]), head(features))


def test_a_token_that_tells_more_counts_more() -> None:
    head = new_head()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.value.weight[:, 0], head.weigh.weight[:] = 1.0, 10.0
    features = np.zeros((5, 8), np.float32)
    features[3, 0] = 2.0

    attention = attend(head, features, np.ones(5, np.bool_)).attention

    # Gates of 0.5: exp(4 * 10 * tanh(2) / 2) to 1.
    np.testing.assert_allclose(attention, [0, 0, 0, 1, 0], atol=1e-6)


def test_features_read_in_parts_give_what_they_give_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bag, "ROWS_AT_ONCE", 7)
    head = new_head()
    features = np.random.default_rng(0).normal(0, 1, (30, 8)).astype(np.float32)
    valid = np.arange(30) % 3 > 0
    features[0] = np.nan

    scores, attention, vector = attend(head, features, valid)

    expected = head(torch.from_numpy(features[valid])[None])[0].softmax(-1)
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-5)
    assert attention[~valid].max() == 0
    np.testing.assert_allclose(attention.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(vector, attention @ np.nan_to_num(features), rtol=1e-4, atol=1e-6)
