"""Which bands a user means: by name, common name, index or wavelength."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gigavim.errors import BandError
from gigavim.sources.source import Band

COMMON_NM = {
    "coastal": (400, 450),
    "blue": (450, 520),
    "green": (520, 600),
    "red": (620, 690),
    "rededge": (690, 800),
    "nir": (800, 900),
    "nir8": (850, 900),
    "nir9": (920, 960),
    "cirrus": (1360, 1390),
    "swir1": (1550, 1750),
    "swir16": (1550, 1750),
    "swir2": (2050, 2350),
    "swir22": (2050, 2350),
    "lwir11": (10500, 11500),
    "lwir12": (11500, 12500),
}
"""Where the centre of a common name lies, in nm: STAC's `eo:common_name` table, made disjoint,
without leading zeros."""

OTHER_NAMES = ("pan", "lwir", "vv", "vh", "hh", "hv")
"""Of bands without one wavelength: panchromatic, thermal, the polarisations of a radar."""

SAME_BAND = 0.03
"""How far apart the centres of one band of two sensors may be, as a share of the longer one.

Near infrared is 842 nm for Sentinel-2 (B08) and 865 nm for Landsat 8 and 9, 2.7 % more, and the
other bands that they share are closer. Different bands of one sensor are 5 % apart and more, but
for B08 and B8A, which are 2.7 % apart and see the same: what is nearer wins.
"""

SENTINEL_2_NM = {
    "b1": 443, "b2": 490, "b3": 560, "b4": 665, "b5": 705, "b6": 740, "b7": 783, "b8": 842,
    "b8a": 865, "b9": 945, "b10": 1375, "b11": 1610, "b12": 2190,
}  # fmt: skip
"""ESA, Sentinel-2 User Handbook, table 1."""

LANDSAT_8_NM = {"b1": 443, "b2": 482, "b3": 561, "b4": 655, "b5": 865, "b6": 1609, "b7": 2201,
                "b8": 590, "b9": 1373, "b10": 10895, "b11": 12005}  # fmt: skip
"""USGS, Landsat 8 Data Users Handbook, table 2-1 and 2-2: centre of each band."""

LANDSAT_7_NM = {"b1": 483, "b2": 560, "b3": 662, "b4": 835, "b5": 1648, "b6": 11335, "b7": 2206,
                "b8": 706}  # fmt: skip
"""USGS, Landsat 7 Data Users Handbook: centre of each band; Landsat 4 and 5 differ by a few nm."""


def select_bands(
    wanted: Sequence[str] | None, available: Sequence[Band], path: str
) -> tuple[int, ...]:
    """Return the indices of the bands that a user asks for, in the order asked.

    Each is looked up as a name (case, separators and leading zeros do not matter: ``B4`` is
    ``B04``), a wavelength (``665nm``, the nearest within 10 nm), a common name (``red``, by
    wavelength: the first that fits), or a 1-based index. Of ``red=3`` the part behind the sign is,
    as an index before all else.

    Raises
    ------
    BandError
        If there is no such band.
    """
    if wanted is None:
        return tuple(range(len(available)))
    return tuple(_find(item, available, path) for item in wanted)


def name_bands(
    wanted: Sequence[str] | None, available: Sequence[Band], selected: Sequence[int]
) -> tuple[Band, ...]:
    """Return the selected bands, named by the user where they say ``NAME=INDEX``."""
    bands = [available[index] for index in selected]
    if wanted is None:
        return tuple(bands)
    names = [item.rpartition("=")[0].strip() for item in wanted]
    return tuple(
        replace(band, name=name) if name else band for band, name in zip(bands, names, strict=True)
    )


def match_bands(wanted: Sequence[Band], available: Sequence[Band]) -> dict[int, int]:
    """Find which band is which of those that a model knows, by what both say of themselves.

    Two bands are one if their wavelengths are within `SAME_BAND`; where one of them has none, if
    its common name (``nir``) fits the other's wavelength or common name; and where neither tells
    more, if their names are equal. ``B05`` of Landsat is not ``B05`` of Sentinel-2. Each band
    matches one other at most: equal names first, then the nearest wavelengths.

    Returns
    -------
    matched
        For each wanted band that there is, in their order, which of the available ones it is.

    Examples
    --------
    >>> sentinel = [Band("B04", 665), Band("B05", 705), Band("B08", 842)]
    >>> landsat = [Band("B4", 655), Band("B5", 865), Band("B10", 10895)]
    >>> match_bands(sentinel, landsat)
    {0: 0, 2: 1}
    """
    pairs = sorted(
        (_plain(a.name) != _plain(b.name), gap, i, j)
        for i, a in enumerate(wanted)
        for j, b in enumerate(available)
        if (gap := _gap(a, b)) is not None
    )
    matched: dict[int, int] = {}
    for _, _, i, j in pairs:
        if i not in matched and j not in matched.values():
            matched[i] = j
    return dict(sorted(matched.items()))


def says_what_it_is(band: Band) -> bool:
    """Whether a band has a wavelength or a name that is more than a number."""
    return band.wavelength_nm is not None or _plain(band.name) in (*COMMON_NM, *OTHER_NAMES)


def _gap(a: Band, b: Band) -> float | None:
    """Return how far apart two bands that may be one are; None for those that are two."""
    if a.wavelength_nm is not None and b.wavelength_nm is not None:
        gap = abs(a.wavelength_nm - b.wavelength_nm) / max(a.wavelength_nm, b.wavelength_nm)
        return gap if gap <= SAME_BAND else None
    if _plain(a.name) == _plain(b.name):
        return 0.0
    (low, high), (other_low, other_high) = range_nm(a), range_nm(b)
    is_within = other_low <= low < other_high or low <= other_low < high
    return SAME_BAND if is_within else None


def range_nm(band: Band) -> tuple[float, float]:
    """Return from where to where the centre of a band may be, in nm; 0 to 0 if it is unknown."""
    if band.wavelength_nm is not None:
        return band.wavelength_nm, band.wavelength_nm
    low, high = COMMON_NM.get(_plain(band.name), (0, 0))
    return float(low), float(high)


def sensor_bands(names: Sequence[str], path: str) -> tuple[Band, ...]:
    """Give bands their wavelengths where names and file name tell the sensor."""
    plain = [re.sub(r"^sr", "", _plain(name)) for name in names]
    centres = _sensor(plain, Path(path).name)
    return tuple(Band(name, centres.get(key)) for name, key in zip(names, plain, strict=True))


def band_in_file_name(path: str) -> str | None:
    """Return the band id that a file of one band is named after, as in ``..._L1C_B04.tiff``."""
    match = re.search(r"(?:^|_)(B\d{1,2}A?)(?:_\d+m)?\.\w+$", Path(path).name, re.IGNORECASE)
    return match[1] if match else None


def _sensor(plain: Sequence[str], file_name: str) -> dict[str, int]:
    """Return the wavelengths of the sensor that a file comes from, as far as that is certain."""
    if re.match(r"L[COT]0[89]_", file_name):
        return LANDSAT_8_NM
    if re.match(r"L[ET]0[457]_", file_name):
        return LANDSAT_7_NM
    # No other sensor has a band 8A.
    if "b8a" in plain or re.search(r"(^|_)(S2[ABC]|Sentinel-?2[ABC]?|T\d\d[A-Z]{3})_", file_name):
        return SENTINEL_2_NM
    return {}


def _find(item: str, available: Sequence[Band], path: str) -> int:
    _, sign, meant = item.rpartition("=")
    wanted = _plain(meant)
    is_index = wanted.isdecimal() and 1 <= int(wanted) <= len(available)
    if sign and is_index:
        return int(wanted) - 1
    names = [_plain(band.name) for band in available]
    if wanted in names:
        return names.index(wanted)
    centres = [(band.wavelength_nm, index) for index, band in enumerate(available)]
    known = [(nm, index) for nm, index in centres if nm is not None]
    if known and (match := re.fullmatch(r"(\d+(?:\.\d+)?)nm", wanted)):
        gap, index = min((abs(nm - float(match[1])), index) for nm, index in known)
        if gap <= 10:
            return index
    low, high = COMMON_NM.get(wanted, (0, 0))
    for nm, index in known:
        if low <= nm < high:
            return index
    if is_index:
        return int(wanted) - 1
    has = ", ".join(f"{number} {band}" for number, band in enumerate(available, 1))
    raise BandError(f"{path} has no band {meant!r}; it has {has}: say which by number or name")


def _plain(name: str) -> str:
    """Fold case, separators and leading zeros: ``Band_04`` and ``band 4`` are one."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", "", name).lower())
