"""From the tokens of all dates to the features of places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.pipelines.encode import ROWS_AT_ONCE, Placed, tokens_by_block, valid_in_order
from gigavim.pipelines.stack.plan import StackPlan
from gigavim.store import ResultStore
from gigavim.streamed import Mixed


def valid_tokens(stack: StackPlan, store: ResultStore) -> NDArray[np.bool_]:
    """Return which tokens of the sequence could be read, shape (n,)."""
    valid = np.empty(len(stack.tokens.sequence), np.bool_)
    for day, plan, ranks in zip(stack.dates, stack.plans, stack.ranks, strict=True):
        valid[ranks] = valid_in_order(plan, store.part(str(day)))
    return valid


def placed_tokens(
    stack: StackPlan, store: ResultStore, valid: NDArray[np.bool_]
) -> Iterator[Placed]:
    """Yield the tokens of all dates with their positions, and their places among the valid ones.

    A model that knows seasons is told the day of the year.
    """
    encoder = stack.tokens.setup.model.encoder
    for day, plan, ranks in zip(stack.dates, stack.plans, _valid_ranks(stack, valid), strict=True):
        here = ranks >= 0
        season = encoder.season_for(torch.tensor([day.timetuple().tm_yday], dtype=torch.float64))
        for places, tokens in tokens_by_block(plan, store.part(str(day)), here):
            yield ranks[here][places], tokens if season is None else tokens + season


def mean_features(
    stack: StackPlan, mixed: Mixed, valid: NDArray[np.bool_]
) -> Iterator[NDArray[np.float16]]:
    """Yield the mean of each place's features over its dates in parts, 0 where it has none."""
    width = stack.tokens.setup.model.encoder.config.width
    valid_ranks = _valid_ranks(stack, valid)
    for cut in stack.places.sequence.chunks(max(1, ROWS_AT_ONCE // len(stack.dates))):
        total = np.zeros((cut.stop - cut.start, width), np.float32)
        count = np.zeros((len(total), 1), np.float32)
        found = []
        for places, ranks in zip(stack.place_of, valid_ranks, strict=True):
            there = slice(*np.searchsorted(places, (cut.start, cut.stop)))
            seen = ranks[there] >= 0
            found.append((places[there][seen] - cut.start, ranks[there][seen]))
        # The dates of these places lie side by side, or each by itself.
        together = [found] if stack.order == "place" else [[each] for each in found]
        for dates in together:
            ranks = np.concatenate([ranks for _, ranks in dates])
            if not len(ranks):
                continue
            first, last = int(ranks.min()), int(ranks.max())
            features = torch.as_tensor(mixed.tokens(first, last + 1)).cpu().numpy()
            for places, own in dates:
                total[places] += features[own - first]
                count[places] += 1
        yield (total / np.maximum(count, 1)).astype(np.float16)


def valid_places(stack: StackPlan, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which places could be read on any date, shape (m,)."""
    seen = np.zeros(len(stack.places.sequence), np.bool_)
    for places, ranks in zip(stack.place_of, stack.ranks, strict=True):
        seen[places[valid[ranks]]] = True
    return seen


def _valid_ranks(stack: StackPlan, valid: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return, for each date, where each patch is among the valid tokens; -1 if it is not valid."""
    among = np.where(valid, np.cumsum(valid) - 1, -1)
    return [among[ranks] for ranks in stack.ranks]
