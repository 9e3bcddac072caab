"""Cloud and cloud shadow, as the quality bands of Sentinel-2 and Landsat code them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUALITY_BANDS = ("SCL", "QA_PIXEL")
"""Bands that say where clouds are."""

QA_CLOUD = 0b1110
"""Bits 1 to 3 of QA_PIXEL: dilated cloud, cirrus, cloud.

USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide, table 6-3; of Landsat 4 to 7, whose
bit 2 is not used, the same. Bit 0 is fill, bit 4 cloud shadow.
"""
QA_SHADOW = 0b10000
QA_FILL = 0b1

SCL_CLOUD = (8, 9, 10)
"""Cloud of medium and high probability, thin cirrus.

ESA, Sentinel-2 Level-2A Algorithm Theoretical Basis Document, scene classification. 0 is no data, 1
saturated or defective, 3 cloud shadow.
"""
SCL_SHADOW = (3,)


def is_quality_band(name: str) -> bool:
    """Whether a band says where clouds are.

    >>> is_quality_band("qa pixel"), is_quality_band("B04")
    (True, False)
    """
    return _plain(name) in {_plain(each) for each in QUALITY_BANDS}


def cloud_and_shadow(
    values: NDArray[Any], band: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read cloud and cloud shadow out of a quality band.

    Parameters
    ----------
    band
        Its name: ``QA_PIXEL`` for Landsat's bits, ``SCL`` for Sentinel-2's classes.

    Examples
    --------
    >>> cloud_and_shadow(np.array([21824, 22280, 23888]), "QA_PIXEL")
    (array([False,  True, False]), array([False, False,  True]))
    """
    whole = values.astype(np.int64)
    if _plain(band) == "qapixel":
        seen = whole & QA_FILL == 0
        return seen & (whole & QA_CLOUD > 0), seen & (whole & QA_SHADOW > 0)
    return np.isin(whole, SCL_CLOUD), np.isin(whole, SCL_SHADOW)


def _plain(name: str) -> str:
    """Fold case and separators: ``QA_PIXEL`` and ``qa pixel`` are one."""
    return re.sub(r"[\s_-]+", "", name).lower()
