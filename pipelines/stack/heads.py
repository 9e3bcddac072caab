"""What heads say of each place over all dates and, where asked for, on each of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.head import ClassTable, Rows, clusters, probabilities
from gigavim.pipelines.maps import ClassMap, apply_heads
from gigavim.pipelines.plan import Plan
from gigavim.pipelines.stack.plan import StackPlan
from gigavim.store import ResultStore


class _Both:
    """The features of places and, after them, those of each date."""

    def __init__(self, places: Rows, dates: Rows) -> None:
        self._places, self._dates = places, dates
        self._length = places.shape[0]
        self.shape = (self._length + dates.shape[0], places.shape[1])

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        length = self._length
        here = self._places[min(start, length) : min(stop, length)]
        there = self._dates[max(0, start - length) : max(0, stop - length)]
        return np.concatenate([np.asarray(here), np.asarray(there)])


def map_dates(
    stack: StackPlan, store: ResultStore, *, per_date: bool
) -> tuple[list[ClassMap], list[tuple[Plan, ClassMap]]]:
    """Run the heads on the features of places and, where asked for, on those of each date."""
    places, setup = stack.places, stack.places.setup
    if not per_date:
        return apply_heads(places, store), []
    # Clusters of a date are those of the stack, or nobody could compare them.
    others = tuple(head for head in setup.heads if head != "clusters")
    alone = dataclasses.replace(places, setup=dataclasses.replace(setup, heads=others))
    maps = apply_heads(alone, store)
    features = store.array("dates/features")
    valid = store.values("dates/valid") > 0
    labels: dict[str, tuple[NDArray[np.uint8], ClassTable]] = {}
    for made in maps:
        probs = probabilities(features, setup.model.encoder)
        best = np.concatenate([part.argmax(1) + 1 for part in probs]).astype(np.uint8)
        labels[made.name] = np.where(valid, best, 0).astype(np.uint8), made.table
    if "clusters" in setup.heads:
        both = np.concatenate([store.values("tokens/valid") > 0, valid])
        all_features = _Both(store.array("tokens/features"), features)
        found = clusters(all_features, setup.config.clusters, setup.config.seed, both)
        table = ClassTable.of_clusters(int(found.max()) + 1)
        numbers = np.zeros(len(both), np.uint8)
        numbers[both] = found + 1
        maps.append(ClassMap("clusters", numbers[: len(places.sequence)], table))
        labels["clusters"] = numbers[len(places.sequence) :], table
    return maps, [
        (plan, ClassMap(f"{name}-{day}", of_tokens[ranks], table))
        for name, (of_tokens, table) in labels.items()
        for day, plan, ranks in zip(stack.dates, stack.plans, stack.ranks, strict=True)
    ]
