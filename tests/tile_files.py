"""Small sets of labelled tiles, written as files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.io import imsave

COLOURS = {"forest": (30, 90, 40), "sea": (20, 40, 120)}


def tile(label: str, number: int, side: int = 16) -> NDArray[np.uint8]:
    random = np.random.default_rng([number, len(label)])
    noise = random.normal(0, 25, (side, side, 3))
    return np.clip(COLOURS[label] + noise, 0, 255).astype(np.uint8)


def write_folder(folder: Path, count: int = 12, side: int = 16) -> Path:
    """Write a folder of PNG files for each class."""
    for label in COLOURS:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = tile(label, number, side)
            imsave(folder / label / f"{number}.png", image, check_contrast=False)
    return folder


def write_table(folder: Path, groups: int = 6, count: int = 12) -> Path:
    """Write the same tiles, and a table that gives each a group."""
    write_folder(folder, count)
    lines = [
        f"{label}/{number}.png,{label},slide {number % groups}"
        for label in COLOURS
        for number in range(count)
    ]
    table = folder / "labels.csv"
    table.write_text("\n".join(["file,label,group", *lines]), encoding="utf-8")
    return table


def zipped(folder: Path, path: Path) -> Path:
    """Pack a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder.parent))
    return path
