"""What a person sees of a run: progress while it lasts, one summary at the end."""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Stages:
    """Seconds spent in each stage; reading and decoding overlap the others."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, stage: str, seconds: float) -> None:
        """Count time that was measured elsewhere."""
        self.seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time that the body takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, title: str, tokens: int) -> None:
        """Begin a stage that will see so many tokens."""
        ...

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        """Count tokens, and level pixels read for them."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, title: str, tokens: int) -> None:
        """Do nothing."""

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Summary:
    """What became of one image."""

    image: str
    status: str
    """``complete``, ``skipped`` (it was complete before), or ``failed``."""
    error: str | None = None
    store: str | None = None
    overlay: str | None = None
    geotiff: str | None = None
    model: str | None = None
    mode: str | None = None
    spacing: tuple[float, float] | None = None
    """Height and width of the pixels that the model saw, in ``unit``."""
    unit: str | None = None
    tokens: int = 0
    unreadable_tokens: int = 0
    """Patches of which less than half could be read."""
    read_errors: int = 0
    """File tiles and regions that could not be decoded; listed under ``errors/`` in the store."""
    megapixels: float = 0.0
    """Level pixels read, in millions."""
    resumed: bool = False
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage; reading and decoding run beside the others."""
    peak_memory_bytes: int = 0
    """Largest resident memory of the process so far."""
    peak_device_memory_bytes: int | None = None
    """Most memory allocated at once on the GPU; None where there is none."""
    classes: dict[str, float] = field(default_factory=dict)
    """Share of the mapped patches by class."""
    scores: dict[str, float] = field(default_factory=dict)
    """Probability of each class for the image as a whole."""
    class_areas: dict[str, float] = field(default_factory=dict)
    """Area by class, in ``area_unit``."""
    area_unit: str | None = None
    """``mm²`` for a slide, ``km²`` for a scene."""
    area_unknown: str | None = None
    """Why there are no areas, where there is a map."""
    quality: dict[str, float] = field(default_factory=dict)
    """Share of the foreground that each fault has: out of focus, pen, cloud and the like."""
    faults: tuple[str, ...] = ()
    """The same in words; also what could not be looked for, and why."""
    warnings: tuple[str, ...] = ()
    """In what the image is outside of what the model was trained for."""
    nuclei: int | None = None
    """How many were found; None where none were looked for."""
    nuclei_per_mm2: float | None = None
    """Of the foreground that could be read."""
    geojson: str | None = None
    """Outlines of the nuclei."""
    table: str | None = None
    """Centroids of the nuclei, as CSV."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON would hold them."""
        return asdict(self)


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # On Linux getrusage would count what the process was before it became this program.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
