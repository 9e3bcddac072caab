"""What is wrong with an image before any model sees it, found in its pixels alone.

Of a slide: out of focus, pen, folds, bubbles, black borders. Of a scene: cloud and shadow by its
own QA band, saturation, borders of zeros that nobody declared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Grid
from gigavim.quality.findings import Quality
from gigavim.sources.source import Source

__all__ = ["Quality", "examine", "exclude_qc"]


def examine(source: Source, grid: Grid, foreground: NDArray[np.bool_]) -> Quality:
    """Look for faults of an image on a coarse level, and of its focus on a sample of a finer one.

    Parameters
    ----------
    foreground
        The patches that would be read, shape (rows, columns).

    Raises
    ------
    SourceError
        If the image cannot be read.
    """
    from gigavim.quality.scene import examine_scene
    from gigavim.quality.slide import examine_slide

    look = examine_scene if source.kind == "scene" else examine_slide
    return look(source, grid, foreground)


def exclude_qc(foreground: NDArray[np.bool_], quality: Quality) -> NDArray[np.bool_]:
    """Return the foreground without the patches that have a fault."""
    return np.asarray(foreground & (quality.labels == 0))
