"""What a finished store holds, so that it can be told from one that lost a part of it.

Zarr reads an array whose files are gone as if all of it were empty. So a store says, once it is
written, of each array what it is and how many files and bytes make it up; to compare takes
milliseconds. Arrays that were added later are no damage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def contents_of(store: Path) -> dict[str, dict[str, Any]]:
    """List the arrays of a store by name, but for those that only a resume needs."""
    found: dict[str, dict[str, Any]] = {}
    for folder, folders, files in os.walk(store):
        here = Path(folder)
        if here == store and "state" in folders:
            folders.remove("state")
        if "zarr.json" in files:
            about = json.loads((here / "zarr.json").read_text(encoding="utf-8"))
            if about["node_type"] == "array":
                folders.clear()
                found[here.relative_to(store).as_posix()] = _array(here, about)
    return found


def damage(store: Path, recorded: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name an array that is not as it was recorded; None where all are.

    Parameters
    ----------
    recorded
        What `contents_of` found when the store was written.
    """
    for name, wanted in recorded.items():
        try:
            about = json.loads((store / name / "zarr.json").read_text(encoding="utf-8"))
            found = _array(store / name, about)
        except FileNotFoundError:
            return f"{name} is gone"
        except (ValueError, KeyError, TypeError):
            return f"{name} is no array any more"
        for what, value in found.items():
            if value != wanted[what]:
                return f"{name} has {what} {value}, not {wanted[what]}"
    return None


def _array(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Say what can be told of an array without reading it; ``about`` is its metadata."""
    sizes = [
        (Path(place) / file).stat().st_size
        for place, _, files in os.walk(folder)
        for file in files
        if file != "zarr.json"
    ]
    return {
        "shape": about["shape"],
        "dtype": about["data_type"],
        "files": len(sizes),
        "bytes": sum(sizes),
    }
