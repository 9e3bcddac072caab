"""What was found wrong with an image: a class for every patch, figures, and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gigavim.ngff import Colour


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    name: str
    colour: Colour


@dataclass(frozen=True, eq=False)
class Quality:
    """What is wrong where; the arguments of `ResultStore.write_label_map` but for the place."""

    labels: NDArray[np.uint8]
    """0 for a good patch, else 1 more than the index of its fault; shape (rows, columns)."""
    names: tuple[str, ...]
    """Of the faults that are looked for in this kind of image."""
    colours: tuple[Colour, ...]
    shares: dict[str, float]
    """Share of the foreground that each fault has; of a border, share of all patches."""
    found: tuple[str, ...]
    """In words, for a person; also what could not be looked for, and why."""

    @classmethod
    def of(
        cls,
        masks: Mapping[Fault, NDArray[np.bool_]],
        foreground: NDArray[np.bool_],
        found: Sequence[str],
        *,
        borders: Sequence[Fault] = (),
    ) -> Self:
        """Lay masks of patches over each other, the last on top.

        Parameters
        ----------
        borders
            Faults that lie beside the foreground by nature.
        """
        labels = np.zeros(foreground.shape, np.uint8)
        shares = {}
        for value, (fault, mask) in enumerate(masks.items(), start=1):
            labels[mask] = value
            inside = mask if fault in borders else mask & foreground
            of = mask.size if fault in borders else foreground.sum()
            shares[fault.name] = float(inside.sum() / max(1, of))
        names, colours = zip(*((fault.name, fault.colour) for fault in masks), strict=True)
        return cls(labels, names, colours, shares, tuple(found))


def percent(share: float) -> str:
    """Write a share as a person would.

    >>> percent(0.123), percent(0.004)
    ('12 %', '0.4 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
