"""Which patches of an image are alike: the exact cosine of their features, all of them looked at.

Read once, held as float32, and multiplied by the features of the patch that is asked for: one pass
over memory, faster than half the bytes that have to be converted on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gigavim.head import Rows

MEMORY = 1 << 30
"""Bytes of features that are held: of 1.4 million patches with 192 features, of 2.8 with 96."""
ROWS_AT_ONCE = 32_768
"""Features that are converted together: those of one file of a store."""
DIGITS = 12
"""That similarities are told apart by; sums in another order differ in the 16th."""


@dataclass(frozen=True, eq=False, slots=True)
class Similar:
    """What one patch was found to be like."""

    similarity: NDArray[np.float32]
    """Cosine of its features with those of every token, NaN for those without; shape (n,)."""
    tokens: NDArray[np.int64]
    """The asked one and the most similar, best first, of those equal the earlier; shape (k,)."""


@dataclass(frozen=True, eq=False, slots=True)
class FeatureTable:
    """The features of the tokens of an image, ready to be compared; made by `read_features`."""

    rows: Rows
    """Shape (n, D): float32 in memory, or in the store if they are too many for that."""
    inverse_norm: NDArray[np.float32]
    """1 / length of each row; NaN if it is not readable, not finite or 0. Shape (n,)."""

    @property
    def is_held(self) -> bool:
        """Whether the features are in memory; if not, each question reads them again."""
        return isinstance(self.rows, np.ndarray)

    def similar(self, token: int, count: int) -> Similar:
        """Compare the features of one token with those of all.

        The tokens that are returned are compared in double precision, the others as exactly as a
        sum of D products in float32 is.

        Parameters
        ----------
        count
            Tokens to find, the asked one among them; at least 1. Fewer are found where fewer have
            features.

        Raises
        ------
        ValueError
            If the token has no features to compare.
        """
        if not np.isfinite(self.inverse_norm[token]):
            raise ValueError(f"token {token} has no features to compare")
        query = np.asarray(self.rows[token : token + 1], np.float64)[0]
        has_features = np.isfinite(self.inverse_norm)
        count = min(count, int(has_features.sum()))
        if isinstance(self.rows, np.ndarray):
            similarity = self.rows @ query.astype(np.float32)
            similarity *= self.inverse_norm
            similarity *= self.inverse_norm[token]
            # Twice what two sums of D products, one in a norm, may be off in float32 (Higham,
            # Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
            near = _from_best(similarity, count, (len(query) + 8) * 2.0**-22)
            exact = np.concatenate([_cosine(self.rows[some], query) for some in _cut(near)])
            similarity[near] = exact
        else:
            every = np.concatenate([_cosine(part, query) for part in _parts(self.rows)])
            every[~has_features] = np.nan
            near = _from_best(every, count)
            similarity, exact = every.astype(np.float32), every[near]
        similarity[token] = 1
        best = near[np.argsort(-exact.round(DIGITS), kind="stable")]
        return Similar(similarity, np.concatenate([[token], best[best != token]])[:count])


def read_features(
    features: Rows,
    valid: NDArray[np.bool_],
    *,
    memory: int = MEMORY,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> FeatureTable:
    """Read features once, to hold them if they fit.

    Parameters
    ----------
    features
        ``tokens/features`` of a store, shape (n, D).
    valid
        Which of them count, shape (n,).
    memory
        Bytes that may be held; 4 for each number.
    on_rows
        Told how many rows were read so far.
    """
    count, width = features.shape
    inverse_norm = np.full(count, np.nan, np.float32)
    held = np.empty((count, width), np.float32) if 4 * count * width <= memory else None
    start = 0
    for part in _parts(features):
        here = slice(start, start + len(part))
        squares = np.einsum("ij,ij->i", part, part)
        counts = valid[here] & np.isfinite(squares) & (squares > 0)
        inverse_norm[here][counts] = 1 / np.sqrt(squares[counts])
        if held is not None:
            # 0 times NaN would be NaN in itself, but BLAS is slow on numbers that are none.
            held[here] = np.where(counts[:, None], part, np.float32(0))
        start = here.stop
        on_rows(start)
    return FeatureTable(features if held is None else held, inverse_norm)


def _parts(features: Rows) -> Iterator[NDArray[np.float32]]:
    """Yield all rows, some at a time."""
    for start in range(0, features.shape[0], ROWS_AT_ONCE):
        yield np.asarray(features[start : start + ROWS_AT_ONCE], np.float32)


def _from_best(
    similarity: NDArray[np.floating], count: int, margin: float = 0.0
) -> NDArray[np.int64]:
    """Return the tokens, ascending, that are as similar as the best ones are, or nearly so."""
    # NaN sorts last, which is why the sign is turned.
    least = -np.partition(-similarity, count - 1)[count - 1]
    return np.flatnonzero(similarity >= least - margin)


def _cut(tokens: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield some tokens at a time."""
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        yield tokens[start : start + ROWS_AT_ONCE]


def _cosine(rows: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row with the query, equal for equal rows wherever they are."""
    wide = rows.astype(np.float64)
    # A matrix product may add up the last rows of a matrix in another order than the first.
    products, squares = (wide * query).sum(1), np.square(wide, out=wide).sum(1)
    with np.errstate(invalid="ignore"):
        cosine = products / np.sqrt(squares * (query * query).sum())
    return np.asarray(np.clip(cosine, -1, 1))
