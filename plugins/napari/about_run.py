"""What there is to say of a run in words, and where its image could not be read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np

from gigavim.plugins.napari.regions import Region
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.world import to_world
from gigavim.store.running import is_written, read_progress

MOST_ERRORS = 1000
"""Listed; all are counted."""


def about(results: Results) -> dict[str, str]:
    """Describe a run: what was run on what, how far it is, and what is missing."""
    store, marks = results.store, results.store.attributes
    grid, source = marks["grid"], marks["source"]
    lines = {
        "Status": _status(results),
        "Image": f"{Path(source['uri']).name}, {source['width']:,} × {source['height']:,} px",
        "Model": f"{marks['model']['id']}, {marks['configuration'].get('mode', '')}".rstrip(", "),
        "Spacing": _spacing(results),
        "Time": _time(results),
    }
    if not Path(results.source).exists():
        lines["Image"] += f"; it is no longer at {results.source}"
    if "tokens/valid" in store.group:
        valid = store.values("tokens/valid")
        lines["Patches"] = f"{len(valid):,} of {grid['patch']} px"
        unreadable = int((valid == 0).sum())
        if unreadable:
            lines["Patches"] += f", {unreadable:,} of them unreadable"
    if "errors/x" in store.group:
        count = store.array("errors/x").shape[0]
        parts = "1 part" if count == 1 else f"{count:,} parts"
        lines["Errors"] = f"{parts} could not be read" if count else "none"
    return {name: words for name, words in lines.items() if words}


def read_errors(results: Results) -> list[Region]:
    """Return the parts of the image that could not be read, in the order of the file."""
    if "errors/message" not in results.store.group:
        return []
    x, y, w, h, messages = (
        np.asarray(results.store.array(f"errors/{name}")[:MOST_ERRORS])
        for name in ("x", "y", "w", "h", "message")
    )
    middles = to_world(results.world, np.stack([y + h / 2, x + w / 2], 1))
    sides = np.stack([h, w], 1) @ np.abs(results.world[:2, :2]).T
    return [
        Region(middle_y, middle_x, height, width, f"x {left:,}, y {top:,}: {message}")
        for (middle_y, middle_x), (height, width), left, top, message in zip(
            middles.tolist(), sides.tolist(), x, y, messages, strict=True
        )
    ]


def _status(results: Results) -> str:
    """Say whether the run is over, goes on, or was stopped."""
    if results.complete:
        return "complete"
    store, marks = results.store, results.store.attributes
    progress = read_progress(store.path)
    writer = marks.get("writer", {})
    if is_written(store.path, writer):
        how_far = f": {progress.stage}" if progress and progress.stage else ""
        if progress and progress.total:
            how_far += f", {progress.done / progress.total:.0%}"
        return f"running{how_far} (process {writer.get('pid')} on {writer.get('host')})"
    why = progress.stopped if progress and progress.stopped else "its process ended"
    return f"not complete: {why}; the same `gigavim run` goes on where it stopped"


def _spacing(results: Results) -> str:
    """Say how large the pixels are that the model saw, and those of the file."""
    grid, own = results.store.attributes["grid"], results.spacing[1]
    seen = grid["cell_level0"][1] / grid["stride"] * own
    words = f"{seen:.4g} {results.unit} per pixel"
    return words if f"{seen:.2g}" == f"{own:.2g}" else f"{words}, {own:.4g} in the file"


def _time(results: Results) -> str:
    """Say when the run was, and how long it took."""
    marks = results.store.attributes
    started = marks.get("writer", {}).get("started")
    words = ""
    if started:
        words = datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
    if "seconds" in marks:
        minutes, seconds = divmod(round(marks["seconds"]), 60)
        hours, minutes = divmod(minutes, 60)
        took = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
        words += f", took {took.removeprefix('0 min ')}"
    return words.removeprefix(", ")
