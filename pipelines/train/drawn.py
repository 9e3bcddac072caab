"""Batches that are drawn when they are needed, each from the seed and its place in the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from gigavim.pipelines.train.batches import Batch

Draw = Callable[[NDArray[np.int64], np.random.Generator], Batch]
"""Makes a batch of the rows of a set, with changes at random."""


class DrawnBatches:
    """All rows of a set in a new order each epoch; it goes on where it was.

    Parameters
    ----------
    count
        Rows of the set.
    batch
        Rows in a batch; the last few of an order may be left out.
    rank, ranks
        Which of how many processes this is; each has its share of every batch.
    """

    def __init__(
        self, draw: Draw, count: int, batch: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.draw, self.count, self.batch, self.seed = draw, count, batch, seed
        self.rank, self.ranks = rank, ranks
        self.epoch = self.number = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, self.count // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        if self.number == len(self):
            self.epoch, self.number = self.epoch + 1, 0
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for number in range(self.number, len(self)):
            # Where the run is once this batch is trained on, and a checkpoint may be written.
            self.number = number + 1
            rows = order[number * self.batch : (number + 1) * self.batch][self.rank :: self.ranks]
            place = [self.seed, self.epoch, number, self.rank]
            yield self.draw(rows, np.random.default_rng(place))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were taken."""
        return {"epoch": self.epoch, "number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.number = state["epoch"], state["number"]
