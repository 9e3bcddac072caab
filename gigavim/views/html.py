"""A result as one HTML file that opens anywhere, offline, and an index for many.

All that a page shows is in the file: pictures as data, one style sheet, one script. Its content
security policy lets nothing else load or run, whatever an image is called.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gigavim import __version__
from gigavim.area import cell_areas
from gigavim.config import source_options
from gigavim.errors import SourceError
from gigavim.exports.result import NUCLEI, Layer, Result
from gigavim.foreground import thumbnail
from gigavim.ngff import Colour
from gigavim.sources import open_source
from gigavim.store import ResultStore
from gigavim.store.disk import write_file, writing
from gigavim.views.overlay import labels_under_pixels
from gigavim.views.rgb import to_rgb

OVERVIEW_SIDE = 1200
"""Longest side of the picture in a report, in pixels."""
THUMBNAIL_SIDE = 192
"""Of the pictures in an index, twice what is shown."""
ERRORS_SHOWN = 50
STRIP_ROWS = 1024
"""Of a map, that are counted at once."""


@dataclass(frozen=True)
class Entry:
    """One image in an index."""

    image: str
    """Its file, as the user named it."""
    status: str
    """``complete``, ``skipped``, ``failed`` and the like."""
    message: str | None = None
    """Why it failed."""
    store: Path | None = None
    report: Path | None = None
    """Its own page, to be linked to."""
    patches: int = 0
    seconds: float | None = None
    result: str = ""
    """What was found, in a few words."""

    @classmethod
    def of(cls, store: str | Path, report: Path | None = None) -> Self:
        """Describe a finished store.

        Raises
        ------
        StoreError
            If there is none, or its run is not complete.
        """
        result = Result.open(store)
        return cls(
            result.about["source"]["uri"],
            result.about["status"],
            store=Path(store),
            report=report,
            patches=result.store.array("tokens/valid").shape[0],
            seconds=result.about.get("seconds"),
            result=_found(result),
        )


def write_report(store: str | Path, path: str | Path) -> None:
    """Write the page of a finished store.

    The overview is read from the image again; where that is gone, maps lie on an empty sheet and
    the page says why.

    Raises
    ------
    StoreError
        If there is no finished store, or the page cannot be written.
    """
    result = Result.open(store)
    about = result.about
    picture, ratio, missing = _overview(result)
    source, spacing = about["source"], about["spacing"]
    layers = [result.layer(head) for head in result.heads()]
    maps = [
        _map(number, layer, source["height"], ratio, picture.shape[:2])
        for number, layer in enumerate(layers)
    ]
    quality = about.get("quality")
    errors, error_count = _errors(result.store)
    unit = spacing["unit"]
    page = _page(
        "report",
        title=Path(source["uri"]).name,
        status=about["status"],
        headline=f"{result.model}, {about['configuration'].get('mode', '')}, "
        f"{_pixel(spacing['achieved'], unit)}",
        overview={
            "image": _jpeg(picture),
            "width": picture.shape[1],
            "height": picture.shape[0],
            "missing": missing,
        },
        maps=maps,
        warnings=about.get("warnings", []),
        scores=_scores(result, layers),
        quality=None if quality is None else quality["found"],
        image_facts=[
            ("file", source["uri"]),
            ("size", f"{source['width']:,} x {source['height']:,} px"),
            ("bytes", None if source.get("size") is None else f"{source['size']:,}"),
            ("bands", ", ".join(source["bands"])),
            ("reader", source["reader"]),
            ("pixel", f"{_pixel(spacing['level0'], unit)}, from {spacing['origin']}"),
            ("fingerprint", source["fingerprint"]),
        ],
        run_facts=[
            ("command", about["command"]),
            ("version", about["version"]),
            ("model", result.model),
            ("weights", f"sha256 {about['model']['weights_sha256']}"),
            ("asked for", _asked(spacing["requested"], unit)),
            ("read at", f"{_pixel(spacing['achieved'], unit)}, from level {spacing['level_read']}"),
            ("patches", f"{result.store.array('tokens/valid').shape[0]:,}"),
            ("started", about.get("writer", {}).get("started")),
            ("took", _seconds(about.get("seconds"))),
            ("memory", _bytes(about.get("peak_memory_bytes"))),
        ],
        stages=_stages(about.get("stages", {})),
        errors=errors,
        error_count=f"{error_count:,}",
        unreadable=f"{int((result.store.values('tokens/valid') == 0).sum()):,}",
    )
    with writing(Path(path)):
        write_file(Path(path), page.encode())


def write_index(entries: Sequence[Entry], path: str | Path, *, title: str = "Images") -> None:
    """Write the page of a batch: a table that sorts, with pictures, failures and why.

    Parameters
    ----------
    entries
        One an image; links to their reports are relative where these lie beside or below.

    Raises
    ------
    StoreError
        If a store that is named is none, or the page cannot be written.
    """
    path = Path(path)
    rows = [
        {
            "name": Path(entry.image).name,
            "status": entry.status,
            "message": entry.message,
            "link": _link(entry.report, path),
            "thumbnail": _thumbnail(entry.store),
            "result": entry.result,
            "patches": entry.patches,
            "patches_text": f"{entry.patches:,}" if entry.patches else "",
            "seconds": entry.seconds,
            "seconds_text": _seconds(entry.seconds) or "",
        }
        for entry in entries
    ]
    counts = Counter(entry.status for entry in entries).most_common()
    page = _page("index", title=title, rows=rows, counts=counts)
    with writing(path):
        write_file(path, page.encode())


def _page(template: str, **content: Any) -> str:
    """Fill in a template; all text is escaped."""
    import jinja2
    from markupsafe import Markup

    folder = Path(__file__).with_name("templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = (folder / f"{template}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(f"{template}.html.j2").render(
        version=__version__,
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(f"'sha256-{digest}'"),
        **content,
    )


def _overview(result: Result) -> tuple[NDArray[np.uint8], tuple[float, float], str | None]:
    """Return the image, level-0 pixels to one of its rows and columns, and why it is missing."""
    options = source_options(result.about["configuration"])
    try:
        source = open_source(result.about["source"]["uri"], **options)
        pixels, ratio_y, ratio_x = thumbnail(source, OVERVIEW_SIDE)
    except SourceError as error:
        height, width = result.size
        ratio = max(1.0, max(height, width) / OVERVIEW_SIDE)
        sheet = np.full((math.ceil(height / ratio), math.ceil(width / ratio), 3), 235, np.uint8)
        return sheet, (ratio, ratio), f"The image cannot be shown: {error}"
    return to_rgb(pixels, source.bands), (ratio_y, ratio_x), None


def _map(
    number: int, layer: Layer, height: int, ratio: tuple[float, float], shape: tuple[int, int]
) -> dict[str, Any]:
    """Describe a class map for the template, with a picture of each class that occurs."""
    place = layer.registration
    coarser = max(1.0, min(ratio[0] / place.cell_y, ratio[1] / place.cell_x))
    level = min(len(layer.levels) - 1, int(math.log2(coarser)))
    labels = np.asarray(layer.levels[level][...])
    seen = labels_under_pixels(labels, place.reduced(2**level), ratio, shape)
    areas = cell_areas(place, layer.shape[0], height)
    counted = _counted(layer)
    total = max(1, sum(count for *_, count in counted))
    by_class = _areas(layer, areas.of_row)
    return {
        "name": layer.name,
        "shown": number == 0,
        "unit": areas.unit,
        "area_unknown": areas.unknown,
        "classes": [
            {
                "id": f"map{number}-{value}",
                "name": name,
                "colour": "#" + bytes(colour).hex(),
                "count": f"{count:,}",
                "share": f"{count / total:.1%}",
                "area": "" if by_class is None else f"{by_class[value]:.3g}",
                "mask": _mask(seen == value, colour),
            }
            for value, (name, colour, count) in enumerate(counted, start=1)
            if count
        ],
    }


def _found(result: Result) -> str:
    """Say in a few words what was found: how many nuclei, or the largest classes."""
    if result.has_nuclei:
        return f"{result.store.array(f'objects/{NUCLEI}/ends').shape[0]:,} nuclei"
    counts = {name: count for name, _, count in _counted(result.layer()) if count}
    total = max(1, sum(counts.values()))
    largest = sorted(counts, key=lambda name: -counts[name])[:3]
    return ", ".join(f"{name} {counts[name] / total:.0%}" for name in largest)


def _counted(layer: Layer) -> list[tuple[str, Colour, int]]:
    """Return name, colour and number of cells of each class."""
    counts = np.zeros(len(layer.names) + 1, np.int64)
    for _, rows in _strips(layer):
        counts += np.bincount(rows.ravel(), minlength=len(counts))
    return list(zip(layer.names, layer.colours, counts[1:].tolist(), strict=True))


def _areas(layer: Layer, of_row: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Return the area of each label."""
    if of_row is None:
        return None
    sums = np.zeros(len(layer.names) + 1)
    for start, rows in _strips(layer):
        weights = np.repeat(of_row[start : start + len(rows)], rows.shape[1])
        sums += np.bincount(rows.ravel(), weights, len(sums))
    return sums


def _strips(layer: Layer) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the first row and the labels of the finest level, some rows at a time."""
    for start in range(0, layer.shape[0], STRIP_ROWS):
        yield start, np.asarray(layer.levels[0][start : start + STRIP_ROWS])


def _scores(result: Result, layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """Return what a classifier says of the image as a whole, likeliest first."""
    named = [layer.names for layer in layers if layer.name == "classify"]
    if not named or "image/scores" not in result.store.group:
        return []
    scores = zip(named[0], result.store.values("image/scores").tolist(), strict=True)
    return [(name, f"{score:.1%}") for name, score in sorted(scores, key=lambda s: -s[1])]


def _errors(store: ResultStore) -> tuple[list[dict[str, str]], int]:
    """Return the first parts that could not be read, and how many there are."""
    columns = {name: store.values(f"errors/{name}") for name in ("x", "y", "w", "h", "message")}
    shown = zip(*(column[:ERRORS_SHOWN].tolist() for column in columns.values()), strict=True)
    rows = [
        {"x": f"{x:,}", "y": f"{y:,}", "size": f"{w:,} x {h:,}", "message": str(message)}
        for x, y, w, h, message in shown
    ]
    return rows, len(columns["x"])


def _stages(seconds: dict[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.values(), default=0) or 1
    return [
        {"name": name, "text": _seconds(value), "percent": round(100 * value / longest)}
        for name, value in seconds.items()
    ]


def _thumbnail(store: Path | None) -> str | None:
    """Return a small picture of the image with its classes; None without a store."""
    if store is None:
        return None
    result = Result.open(store)
    picture, _, missing = _overview(result)
    if missing:
        return None
    step = max(1, math.ceil(max(picture.shape[:2]) / THUMBNAIL_SIDE))
    return _jpeg(np.asarray(Image.fromarray(picture).reduce(step)))


def _jpeg(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mask(where: NDArray[np.bool_], colour: Colour) -> str:
    """Return a picture that is a colour in some places and clear in all others."""
    picture = Image.fromarray(where.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, *colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", bits=1, transparency=0)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _link(report: Path | None, index: Path) -> str | None:
    """Return where a report is, seen from the index."""
    if report is None:
        return None
    folder, target = index.absolute().parent, report.absolute()
    if target.is_relative_to(folder):
        # "./" or a name with a colon would read as a scheme.
        return "./" + quote(target.relative_to(folder).as_posix())
    return target.as_uri()


def _pixel(spacing: Sequence[float], unit: str) -> str:
    y, x = spacing
    size = f"{x:.4g}" if abs(y - x) <= 1e-3 * x else f"{x:.4g} x {y:.4g}"
    return f"{size} {unit}/px"


def _asked(spacing: float | None, unit: str) -> str:
    return "what the model was trained at" if spacing is None else f"{spacing:.4g} {unit}/px"


def _seconds(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
