"""How a TIFF is laid out: which pages are levels, which samples are bands, and where tiles lie."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Spacing, Window
from gigavim.sources.file_source import LARGEST_TILE, trusting
from gigavim.sources.source import RGB, Band
from gigavim.sources.spacing import aperio_spacing, ome_spacing, resolution_spacing

# It logs what is wrong with a damaged file; here that is raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

ENDED = (
    tifffile.COMPRESSION.JPEG,
    tifffile.COMPRESSION.JPEG2000,
    tifffile.COMPRESSION.APERIO_JP2000_RGB,
    tifffile.COMPRESSION.APERIO_JP2000_YCBC,
)
END = b"\xff\xd9"
"""What JPEG and JPEG 2000 end with: ITU-T T.81, B.1.1.3; T.800, A.4.4."""

COLOUR = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Where the file tiles (or strips) of some samples of one level lie."""

    height: int
    """Of a file tile, in pixels of the level."""
    width: int
    columns: int
    """File tiles in a row."""
    samples: range
    """The samples of the image that they hold, interleaved."""
    first: int
    """Index of the first of them in its page."""
    offsets: NDArray[np.int64]
    """Of each in the file, in bytes."""
    counts: NDArray[np.int64]
    """Bytes of each; 0 where it was never written."""
    decode: Callable[[bytes, int], NDArray[Any]]
    """Bytes and index in the page to values of shape (height, width, sample)."""
    plain: tuple[int, str, tuple[int, ...], int] | None
    """Offset, dtype, shape and plane of pixels that lie in the file as in memory."""

    def under(self, window: Window) -> Iterator[tuple[int, Window]]:
        """Yield index and place of each file tile that a window touches."""
        bottom, right = window.y + window.height, window.x + window.width
        for row in range(window.y // self.height, -(-bottom // self.height)):
            for column in range(window.x // self.width, -(-right // self.width)):
                place = Window(row * self.height, column * self.width, self.height, self.width)
                yield row * self.columns + column, place


@dataclass(frozen=True, eq=False)
class TiffLayout:
    """One image of a TIFF file."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width of each level."""
    tiles: tuple[tuple[Tiles, ...], ...]
    """For each level, its planes: one where samples are interleaved."""
    bands: tuple[Band, ...]
    """One for each colour sample."""
    alpha: int | None
    """The sample that says where the image is transparent."""
    dtype: np.dtype[Any]
    spacing: Spacing | None
    metadata: dict[str, str]


def read_layout(path: str) -> TiffLayout:
    """Read the directories of a TIFF file, and no pixel.

    Raises
    ------
    SourceError
        If it is no TIFF, is cut short, or holds what cannot be read in bounded memory.
    """
    with open_pages(path) as file:
        return _ome(file, path) if file.is_ome else _pyramid(file, path)


@contextmanager
def open_pages(path: str) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file whose pages are all there.

    Raises
    ------
    SourceError
        If it is no TIFF or is cut short, also from inside the context.
    """
    with trusting(path), tifffile.TiffFile(path) as file:
        if _breaks_off(file):
            raise SourceError(f"{path} is cut short: pages lie beyond its end; copy it again")
        yield file


def _breaks_off(file: tifffile.TiffFile) -> bool:
    """Whether there is no page, or the last one that is there points to another."""
    if not len(file.pages):
        return True
    end = file.pages.next_page_offset
    if end is None:
        return False
    file.filehandle.seek(end)
    return any(file.filehandle.read(file.tiff.offsetsize))


def _pyramid(file: tifffile.TiffFile, path: str) -> TiffLayout:
    """Lay out a TIFF whose first page is level 0 and whose smaller copies are the other levels."""
    first = file.pages.first
    aperio = tifffile.tifffile.svs_description_metadata(first.description) if file.is_svs else {}
    levels = [first]
    for page in [*file.pages[1:], *(first.pages or [])]:
        page = page.aspage()
        # Labels and macros are reduced images too: those of Aperio are never tiled.
        if (
            page.is_tiled == first.is_tiled
            and (page.is_reduced or (aperio and page.is_tiled))
            and (page.dtype, page.samplesperpixel) == (first.dtype, first.samplesperpixel)
            and page.imagewidth < levels[-1].imagewidth
            and _same_shape(page, first)
        ):
            levels.append(page)
    bands, alpha = _bands(first)
    return TiffLayout(
        sizes=tuple((page.imagelength, page.imagewidth) for page in levels),
        tiles=tuple(tuple(_tiles(page, 0, path)) for page in levels),
        bands=bands,
        alpha=alpha,
        dtype=np.dtype(first.dtype),
        spacing=aperio_spacing(aperio) or _resolution(first),
        metadata=_metadata(first, aperio),
    )


def _ome(file: tifffile.TiffFile, path: str) -> TiffLayout:
    """Lay out the largest image of an OME-TIFF, at the first of its planes in depth and time."""
    series = max(file.series, key=lambda series: math.prod(series.keyframe.shape[:2]))
    image = _ome_image(file.ome_metadata or "", series)
    sizes, tiles = [], []
    for level in series.levels:
        pages = _channel_pages(level, path)
        sizes.append((pages[0].imagelength, pages[0].imagewidth))
        tiles.append(
            tuple(
                part
                for channel, page in enumerate(pages)
                for part in _tiles(page, channel * page.samplesperpixel, path)
            )
        )
    first = series.keyframe
    count = tiles[0][-1].samples.stop
    bands, alpha = _bands(first)
    if count != len(bands):
        named = [_ome_band(channel, i) for i, channel in enumerate(image.findall("{*}Channel"))]
        bands = tuple(named) if len(named) == count else _numbered(count)
        alpha = None
    return TiffLayout(
        sizes=tuple(sizes),
        tiles=tuple(tiles),
        bands=bands,
        alpha=alpha,
        dtype=np.dtype(first.dtype),
        spacing=ome_spacing(image.attrib) or _resolution(first),
        metadata=_metadata(first, {}) | {"axes": f"{series.axes} {series.shape}"},
    )


def _channel_pages(level: tifffile.TiffPageSeries, path: str) -> list[tifffile.TiffPage]:
    """Return the page of each channel, at index 0 of every other axis."""
    axes = level.get_axes(squeeze=False)
    shape = level.get_shape(squeeze=False)
    inner = math.prod(level.keyframe.shape)
    outer, size = 0, 1
    # Axes that vary from page to page come first.
    while size * inner < math.prod(shape):
        size *= shape[outer]
        outer += 1
    numbers = np.arange(size).reshape(shape[:outer])
    wanted = numbers[tuple(slice(None) if axis == "C" else 0 for axis in axes[:outer])]
    pages = []
    for number in np.atleast_1d(wanted):
        page = level.pages[int(number)]
        if page is None:
            raise SourceError(f"{path}: a channel is missing from the file; copy all its parts")
        pages.append(page.aspage())
    return pages


def _tiles(page: tifffile.TiffPage, sample: int, path: str) -> Iterator[Tiles]:
    """Yield the planes of a page, whose first sample is the image's ``sample``."""
    if page.dtype is None or page.imagedepth > 1:
        raise SourceError(f"{path}: this kind of TIFF cannot be read; convert it to OME-TIFF")
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    width = page.tilewidth if page.is_tiled else page.imagewidth
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    end = page.parent.filehandle.size
    if (
        len(offsets) == 0
        or (offsets + counts).max() > end
        or (page.is_final and offsets[0] + page.nbytes > end)
    ):
        raise SourceError(f"{path} is cut short: tiles lie beyond its end; copy it again")
    separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    held = 1 if separate else page.samplesperpixel
    if not page.is_final and height * width * held * page.dtype.itemsize > LARGEST_TILE:
        raise SourceError(f"{path} has strips of over 1 GiB; convert it to a tiled TIFF")
    columns = -(-page.imagewidth // width)
    area = columns * -(-page.imagelength // height)
    wanted = area * (page.samplesperpixel if separate else 1)
    if not page.is_final and min(len(offsets), len(counts)) < wanted:
        raise SourceError(
            f"{path} is damaged: it lists {min(len(offsets), len(counts))} of its {wanted} tiles; "
            "copy it again"
        )
    dtype = page.parent.byteorder + page.dtype.char
    for plane in range(page.samplesperpixel if separate else 1):
        yield Tiles(
            height=height,
            width=width,
            columns=columns,
            samples=range(sample + plane, sample + plane + held),
            first=plane * area,
            offsets=offsets,
            counts=counts,
            decode=_decoder(page),
            plain=(page.dataoffsets[0], dtype, page.shaped, plane) if page.is_final else None,
        )


def _decoder(page: tifffile.TiffPage) -> Callable[[bytes, int], NDArray[Any]]:
    """Return tifffile's decoder of a page.

    It passes the photometric interpretation on: old Aperio files hold RGB without the Adobe marker
    that would tell libjpeg. What breaks off is refused, where the codecs make the rest grey.
    """
    decode_page = page.decode
    has_end = page.compression in ENDED
    tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}

    def decode(data: bytes, index: int) -> NDArray[Any]:
        if has_end and not data.rstrip(b"\0").endswith(END):
            raise ValueError("the data of the tile breaks off")
        decoded: NDArray[Any] | None = decode_page(data, index, **tables)[0]
        assert decoded is not None
        return np.asarray(decoded[0])

    return decode


def _bands(page: tifffile.TiffPage) -> tuple[tuple[Band, ...], int | None]:
    """Name the samples of a page, and say which one is alpha."""
    count = page.samplesperpixel
    alpha = count - 1 if page.extrasamples and page.extrasamples[-1] in ALPHA else None
    colours = count if alpha is None else count - 1
    if colours == 3 and page.photometric in COLOUR:
        return RGB, alpha
    return _numbered(colours), alpha


def _numbered(count: int) -> tuple[Band, ...]:
    return tuple(Band(f"band {index}") for index in range(1, count + 1))


def _same_shape(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Whether a page is as wide for its height as another, within two of its pixels."""
    expected = page.imagewidth * first.imagelength / first.imagewidth
    return abs(page.imagelength - expected) <= 2 + 0.01 * expected


def _resolution(page: tifffile.TiffPage) -> Spacing | None:
    x, y = (page.tags.valueof(name, (0, 1)) for name in ("XResolution", "YResolution"))
    unit = {2: "inch", 3: "cm"}.get(page.tags.valueof("ResolutionUnit", 2), "")
    if not (x[1] and y[1]):
        return None
    return resolution_spacing(y[0] / y[1], x[0] / x[1], unit)


def _metadata(page: tifffile.TiffPage, aperio: Mapping[str, object]) -> dict[str, str]:
    found = {
        "vendor": "aperio" if aperio else page.tags.valueof("Make"),
        "objective power": aperio.get("AppMag"),
        "scanner": aperio.get("ScanScope ID"),
        "software": page.tags.valueof("Software"),
        "compression": tifffile.COMPRESSION(page.compression).name.lower(),
    }
    return {label: str(value) for label, value in found.items() if value}


def _ome_image(xml: str, series: tifffile.TiffPageSeries) -> ElementTree.Element:
    """Return the Pixels element of a series: the one of its size."""
    try:
        images = ElementTree.fromstring(xml).findall("{*}Image/{*}Pixels")
    except ElementTree.ParseError:
        images = []
    height, width = series.keyframe.imagelength, series.keyframe.imagewidth
    for pixels in images:
        if (pixels.get("SizeY"), pixels.get("SizeX")) == (str(height), str(width)):
            return pixels
    return ElementTree.Element("Pixels")


def _ome_band(channel: ElementTree.Element, index: int) -> Band:
    wavelength = channel.get("EmissionWavelength")
    name = channel.get("Name") or f"band {index + 1}"
    return Band(name, float(wavelength) if wavelength else None)
