from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigavim import change
from gigavim.change import differences, standard_of, take, threshold_of


def features(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, (rows, 5)).astype(np.float16)


@given(st.lists(st.integers(0, 49), min_size=1, max_size=60), st.integers(1, 60))
def test_features_come_in_the_order_asked_for_however_they_are_read(
    rows: list[int], at_once: int
) -> None:
    table = features(50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change, "ROWS_AT_ONCE", at_once)
        found = take(table, np.array(rows))
    np.testing.assert_array_equal(found, table[rows].astype(float))


def test_features_of_a_date_are_standardised_by_its_own() -> None:
    table = features(500)
    table[:, 2] = 7  # constant
    rows = np.arange(0, 500, 2)
    standard = standard_of(table, rows)
    wide = table[rows].astype(float)
    np.testing.assert_allclose(standard.mean, wide.mean(0), atol=1e-9)
    np.testing.assert_allclose(standard.std[[0, 1, 3, 4]], wide.std(0)[[0, 1, 3, 4]], rtol=1e-9)
    assert standard.std[2] == 1


def test_the_score_is_the_cosine_distance_and_season_and_light_are_no_change() -> None:
    before = features(400).astype(np.float64)
    after = before * np.array([1, 2, 0.5, 3, 1]) + np.array([4, 0, -2, 1, 1])
    after[7] = before[8]
    pairs = np.stack([np.arange(400)] * 2, 1)
    standards = standard_of(before, pairs[:, 0]), standard_of(after, pairs[:, 1])
    scores, difference = differences(before, after, pairs, standards)
    assert scores.argmax() == 7
    assert np.delete(scores, 7).max() < 0.1 * scores[7]
    a, b = (
        (table[7] - standard.mean) / standard.std
        for table, standard in zip((before, after), standards, strict=True)
    )
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert scores[7] == pytest.approx(1 - cosine, rel=1e-6)
    np.testing.assert_allclose(difference[7], b - a, rtol=1e-6)


def test_what_did_not_change_is_exactly_0() -> None:
    table = features(100)
    pairs = np.stack([np.arange(100)] * 2, 1)
    standard = standard_of(table, pairs[:, 0])
    scores, _ = differences(table, table, pairs, (standard, standard))
    assert not scores.any()
    assert not (scores > threshold_of(scores)).any()


def test_the_threshold_cuts_the_tail_of_the_scores() -> None:
    random = np.random.default_rng(0)
    still = random.gamma(2, 0.02, 5000)
    changed = random.uniform(0.6, 1.4, 150)
    limit = threshold_of(np.concatenate([still, changed]))
    assert (still > limit).mean() < 0.02
    assert (changed > limit).all()
