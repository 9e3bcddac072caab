"""Pictures with legend and scale bar: an image beside its class map, or what a viewer shows."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gigavim.georeference import Registration
from gigavim.ngff import Colour
from gigavim.store.disk import write_file, writing

_OPACITY = 0.5
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_INK = (32, 33, 36)
_FAINT = (95, 99, 104)
_RULE = (218, 220, 224)
_PAPER = (255, 255, 255)

# On Linux, macOS and Windows; Pillow's own font is ASCII alone.
_FONTS = ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf")

# Below this a picture is enlarged, since legend and cells would be too small to see.
_SMALLEST_SIDE = 640

# Metres to one unit; a map in degrees gets no scale bar.
_METRES = {"µm": 1e-6, "metre": 1.0, "foot": 0.3048, "US survey foot": 1200 / 3937}


def write_overlay(
    path: str | Path,
    thumbnail: NDArray[np.uint8],
    ratio: tuple[float, float],
    labels: NDArray[np.uint8],
    registration: Registration,
    names: Sequence[str],
    colours: Sequence[Colour],
    *,
    title: str,
) -> None:
    """Write a PNG of an image and, beside it, the same with its classes laid over it.

    Parameters
    ----------
    thumbnail
        The whole image, shape (height, width, 3).
    ratio
        Level-0 rows and columns to one pixel of the thumbnail.
    labels
        Class of each cell, shape (rows, columns); 0 is background and stays the image.
    registration
        Where the cells lie.
    names, colours
        Of the classes 1, 2, ...

    Raises
    ------
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    enlarged = max(1, _SMALLEST_SIDE // max(thumbnail.shape[:2]))
    image = thumbnail.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    ratio_y, ratio_x = ratio[0] / enlarged, ratio[1] / enlarged
    classes = labels_under_pixels(labels, registration, (ratio_y, ratio_x), image.shape[:2])
    picture = _compose(
        [image, blend(image, classes, colours)],
        title,
        _legend(labels, names, colours),
        _scale_bar(image.shape[1], ratio_x * registration.spacing.x, registration.spacing.unit),
    )
    _write(Path(path), picture)


def write_view(
    path: str | Path,
    view: NDArray[np.uint8],
    pixel_size: float,
    unit: str,
    legend: Sequence[tuple[Colour, str, str]],
    *,
    title: str,
) -> None:
    """Write a PNG of what a viewer shows, with legend and scale bar beside it.

    Parameters
    ----------
    view
        Shape (height, width, 3).
    pixel_size
        Width of a pixel of the view, in ``unit``.
    legend
        Colour and name of each class, and what there is to say of it.

    Raises
    ------
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    scale_bar = _scale_bar(view.shape[1], pixel_size, unit)
    _write(Path(path), _compose([view], title, legend, scale_bar))


def labels_under_pixels(
    labels: NDArray[np.uint8],
    registration: Registration,
    ratio: tuple[float, float],
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Return the label of the cell that the centre of each pixel lies in; 0 beyond the map.

    Parameters
    ----------
    ratio
        Level-0 rows and columns to one pixel.
    shape
        Rows and columns of pixels.

    Examples
    --------
    >>> from gigavim.geometry import Spacing
    >>> two_by_three = Registration(2, 3, Spacing(1, 1, "µm", "user"))
    >>> labels_under_pixels(np.array([[1, 2]], np.uint8), two_by_three, (1, 2), (2, 4))
    array([[1, 2, 2, 0],
           [1, 2, 2, 0]], dtype=uint8)
    """
    corner = (registration.corner_y, registration.corner_x)
    cell = (registration.cell_y, registration.cell_x)
    rows, columns = (
        np.floor(((np.arange(pixels) + 0.5) * step - start) / side).astype(np.intp)
        for pixels, step, start, side in zip(shape, ratio, corner, cell, strict=True)
    )
    framed = np.pad(labels, 1)
    rows = np.clip(rows, -1, labels.shape[0]) + 1
    columns = np.clip(columns, -1, labels.shape[1]) + 1
    found: NDArray[np.uint8] = framed[rows[:, None], columns[None, :]]
    return found


def blend(
    image: NDArray[np.uint8], classes: NDArray[np.uint8], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Lay class colours over an image in grey; where the class is 0 the image stays as it is.

    On its own colours, pink tissue would turn a blue class violet, which the legend does not have.
    """
    table = np.array([(0, 0, 0), *colours], np.float32)
    tinted = (image @ _GREY)[..., None] * (1 - _OPACITY) + table[classes] * _OPACITY
    return np.where(classes[..., None] > 0, np.rint(tinted).astype(np.uint8), image)


def _legend(
    labels: NDArray[np.uint8], names: Sequence[str], colours: Sequence[Colour]
) -> list[tuple[Colour, str, str]]:
    """Return colour, name and share of the classified area, for each class that occurs.

    Where there is one class alone, as of nuclei, a share of it says nothing.
    """
    counts = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    total = max(1, int(counts.sum()))
    return [
        (colour, name, f"{count / total:.1%}" if len(names) > 1 else "")
        for colour, name, count in zip(colours, names, counts, strict=True)
        if count
    ]


def _scale_bar(width: int, pixel_size: float, unit: str) -> tuple[float, str] | None:
    """Return the length of a bar in pixels, about a fifth of the image, and what it says."""
    if unit not in _METRES:
        return None
    metres = pixel_size * _METRES[unit]
    wished = width * metres / 5
    power = 10.0 ** math.floor(math.log10(wished))
    length = max(step for step in (1, 2, 5) if step * power <= wished) * power
    for size, word in ((1e3, "km"), (1.0, "m"), (1e-3, "mm"), (1e-6, "µm")):
        if length >= size * (1 - 1e-9):
            return length / metres, f"{length / size:.4g} {word}"
    return length / metres, f"{length * 1e9:.4g} nm"


def _compose(
    images: Sequence[NDArray[np.uint8]],
    title: str,
    legend: Sequence[tuple[Colour, str, str]],
    scale_bar: tuple[float, str] | None,
) -> Image.Image:
    """Put title, images, legend and scale bar on one sheet; broad images below each other."""
    height, width = images[0].shape[:2]
    text = max(14, round(max(height, width) / 60))
    font, heading = _font(text), _font(round(text * 1.3))
    gap, line = text, round(text * 1.8)
    names = max((math.ceil(font.getlength(name)) for _, name, _ in legend), default=0)
    said = max((math.ceil(font.getlength(words)) for *_, words in legend), default=0)
    panel = text + gap // 2 + names + gap + said if legend else 0

    left, top = gap, gap + round(text * 1.3) + gap
    right, down = (0, height + gap) if 2 * width > 3 * height else (width + gap, 0)
    further = len(images) - 1
    legend_left = left + width + further * right + 2 * gap
    below = top + height + further * down + gap
    sheet_width = max(legend_left + panel, left + math.ceil(heading.getlength(title))) + gap
    sheet_height = max(below + (line if scale_bar else 0), top + len(legend) * line + gap)

    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, gap), title, _INK, heading)
    for number, image in enumerate(images):
        x, y = left + number * right, top + number * down
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_RULE)
        sheet.paste(Image.fromarray(image), (x, y))

    for row, (colour, name, words) in enumerate(legend):
        y = top + row * line
        draw.rounded_rectangle((legend_left, y, legend_left + text, y + text), text // 5, colour)
        draw.text((legend_left + text + gap // 2, y + text / 2), name, _INK, font, "lm")
        draw.text((legend_left + panel, y + text / 2), words, _FAINT, font, "rm")

    if scale_bar:
        length, label = scale_bar
        y, tick = below + text // 2, text // 3
        draw.line((left, y, left + length, y), _INK, 2)
        for end in (left, left + length):
            draw.line((end, y - tick, end, y + tick), _INK, 2)
        label = label if _font_file() else label.replace("µ", "u")
        draw.text((left + length + gap // 2, y), label, _INK, font, "lm")
    return sheet


def _write(path: Path, picture: Image.Image) -> None:
    """Write a picture all at once."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with writing(path):
        write_file(path, buffer.getvalue())


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font to letter a picture in."""
    file = _font_file()
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def _font_file() -> str | None:
    """Find a font with more than ASCII on this machine."""
    for name in _FONTS:
        with contextlib.suppress(OSError):
            ImageFont.truetype(name)
            return name
    return None
