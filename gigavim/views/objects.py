"""Objects as files that other programs read: GeoJSON for QuPath and others, CSV for tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gigavim.ngff import Colour
from gigavim.nuclei import Nuclei
from gigavim.store.disk import whole_file, writing

DIGITS = 2
"""After the point, of level-0 pixels."""


def write_geojson(
    path: Path,
    parts: Iterable[Nuclei],
    name: str,
    colour: Colour,
    origin: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write outlines as QuPath imports them: detections with a class, in level-0 pixels.

    Parameters
    ----------
    parts
        In level-0 pixels; one is held at a time.
    name, colour
        Of the class.
    origin
        x and y of the pixel that QuPath counts from: `qupath_origin`.

    Raises
    ------
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    classification = {"name": name, "color": list(colour)}
    with writing(path), whole_file(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        separator = b"\n"
        for part in parts:
            for outline, probability in zip(part.outlines(), part.probabilities, strict=True):
                feature = {
                    "type": "Feature",
                    "geometry": {
                        "type": "Polygon",
                        "coordinates": [(outline - origin).round(DIGITS).tolist()],
                    },
                    "properties": {
                        "objectType": "detection",
                        "classification": classification,
                        "measurements": {"probability": round(float(probability), 3)},
                    },
                }
                file.write(separator + json.dumps(feature).encode())
                separator = b",\n"
        file.write(b"\n]}\n")


def write_centroids(path: Path, parts: Iterable[Nuclei], pixel_um2: float) -> None:
    """Write a line for each nucleus: its centroid in level-0 pixels, area and probability.

    Parameters
    ----------
    pixel_um2
        Area of a level-0 pixel.

    Raises
    ------
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    with writing(path), whole_file(path) as file:
        file.write(b"x,y,area_um2,probability\n")
        for part in parts:
            for (x, y), area, p in zip(part.centroids, part.areas, part.probabilities, strict=True):
                line = f"{x:.{DIGITS}f},{y:.{DIGITS}f},{area * pixel_um2:.2f},{p:.3f}\n"
                file.write(line.encode())
