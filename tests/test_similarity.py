"""The most similar patches are those that the formula of the cosine says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim import similarity
from gigavim.similarity import FeatureTable, read_features

HELD, IN_THE_STORE = similarity.MEMORY, 0


class Stored:
    """Features that are read in parts, as those of a store are."""

    def __init__(self, values: NDArray[np.float16]) -> None:
        self._values, self.shape = values, values.shape
        self.most_rows = 0

    def __getitem__(self, rows: slice) -> NDArray[np.float16]:
        part = self._values[rows]
        self.most_rows = max(self.most_rows, len(part))
        return part


def random_features(n: int, width: int, seed: int) -> NDArray[np.float16]:
    """Return features of which many are equal, as those of blank patches are."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((n, width)).astype(np.float16)
    return values[random.integers(0, max(1, n // 2), n)]


def formula(features: NDArray[np.float16], token: int) -> NDArray[np.float64]:
    """Return cosines as they are defined, row by row, in double precision."""
    wide = features.astype(np.float64)
    return np.array(
        [
            sum(row * wide[token]) / np.sqrt(sum(row * row)) / np.sqrt(sum(wide[token] ** 2))
            for row in wide
        ]
    )


@pytest.fixture(params=[HELD, IN_THE_STORE], ids=["held", "in the store"])
def memory(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@given(
    n=st.integers(1, 60),
    width=st.integers(1, 40),
    count=st.integers(1, 70),
    seed=st.integers(0, 99),
    is_held=st.booleans(),
    data=st.data(),
)
def test_similarities_and_the_best_of_them_are_those_of_the_formula(
    n: int, width: int, count: int, seed: int, is_held: bool, data: st.DataObject
) -> None:
    features, random = random_features(n, width, seed), np.random.default_rng(seed)
    valid = random.random(n) < 0.8
    token = data.draw(st.integers(0, n - 1))
    valid[token] = True

    table = read_features(features, valid, memory=HELD if is_held else IN_THE_STORE)
    answer = table.similar(token, count)

    expected = formula(features, token)
    assert np.isnan(answer.similarity[~valid]).all()
    np.testing.assert_allclose(answer.similarity[valid], expected[valid], atol=1e-5)
    # Rounded, since the formula's own sums are off in the last place.
    ranking = np.where(valid, np.round(expected, 10), -np.inf)
    ranking[token] = 2
    wanted = np.argsort(-ranking, kind="stable")[: min(count, valid.sum())]
    assert answer.tokens.tolist() == wanted.tolist()


@pytest.mark.parametrize("width", [1, 7, 96, 192, 384])
def test_of_equal_patches_the_earlier_come_first_wherever_they_are(
    memory: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "ROWS_AT_ONCE", 37)
    row = np.random.default_rng(0).standard_normal(width).astype(np.float16)
    other = np.random.default_rng(1).standard_normal(width).astype(np.float16)
    features = np.tile(row, (1003, 1))
    features[500] = other
    table = read_features(features, np.ones(1003, np.bool_), memory=memory)

    assert table.similar(500, 6).tokens.tolist() == [500, 0, 1, 2, 3, 4]
    assert table.similar(900, 4).tokens.tolist() == [900, 0, 1, 2]


def test_lengths_do_not_matter_even_at_the_ends_of_half_precision(memory: int) -> None:
    features = np.array([[1, 2, 2], [6e-8, 12e-8, 12e-8], [3e4, 6e4, 6e4], [2, 1, 2]], np.float16)
    answer = read_features(features, np.ones(4, np.bool_), memory=memory).similar(3, 4)
    np.testing.assert_allclose(answer.similarity, [8 / 9, 8 / 9, 8 / 9, 1], atol=1e-6)
    assert answer.tokens.tolist() == [3, 0, 1, 2]


def test_features_that_are_no_numbers_or_nothing_are_never_found(memory: int) -> None:
    features = np.array([[1, 0], [np.nan, 1], [np.inf, 1], [0, 0], [0, 1]], np.float16)
    table = read_features(features, np.ones(5, np.bool_), memory=memory)
    answer = table.similar(0, 5)
    assert answer.tokens.tolist() == [0, 4]
    np.testing.assert_array_equal(answer.similarity, [1, np.nan, np.nan, np.nan, 0])
    for token in (1, 2, 3):
        with pytest.raises(ValueError, match=f"token {token} has no features"):
            table.similar(token, 1)


def test_only_what_fits_is_held_and_the_rest_read_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarity, "ROWS_AT_ONCE", 16)
    stored = Stored(random_features(100, 8, 0))
    valid = np.ones(100, np.bool_)
    seen: list[int] = []

    fitting = read_features(stored, valid, memory=100 * 8 * 4, on_rows=seen.append)
    assert seen == [16, 32, 48, 64, 80, 96, 100]
    too_large = read_features(stored, valid, memory=100 * 8 * 4 - 1)

    assert fitting.is_held
    assert not too_large.is_held
    assert_same(fitting, too_large)
    assert stored.most_rows == 16


def assert_same(one: FeatureTable, other: FeatureTable) -> None:
    first, second = one.similar(3, 20), other.similar(3, 20)
    assert first.tokens.tolist() == second.tokens.tolist()
    np.testing.assert_allclose(first.similarity, second.similarity, atol=1e-6)


def test_patches_that_differ_by_less_than_single_precision_are_told_apart(memory: int) -> None:
    features = np.full((300, 64), 4, np.float16)
    features[:, 0] = 4 + np.random.default_rng(0).permutation(300) / 256
    answer = read_features(features, np.ones(300, np.bool_), memory=memory).similar(7, 300)
    expected = np.argsort(np.abs(features[:, 0] - features[7, 0]), kind="stable")
    assert set(answer.tokens[:19]) == set(expected[:19])
