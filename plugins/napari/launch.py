"""A run in the background: `gigavim run` in a process of its own.

So neither its memory nor its lock on the interpreter is the viewer's, it does what the shell does,
to the bit, and it can be ended at any moment: what is in its store then is taken up the next time.
Nor does it share libraries: Triton's LLVM, loaded after that of Mesa's OpenGL, ends the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gigavim.errors import GigavimError, NoSpacingError, StoreError
from gigavim.plugins.napari.areas import Polygon, geojson
from gigavim.sources import open_source
from gigavim.sources.plane import no_spacing
from gigavim.store.disk import write_file, writing
from gigavim.store.naming import SUFFIX, store_path

PATIENCE_S = 20
"""Seconds that a run has to let go of its store before it is killed, which costs it no more."""


@dataclass(frozen=True)
class Request:
    """What somebody wants to be run."""

    image: str
    folder: Path
    """For the store, and pictures beside it."""
    polygons: Sequence[Polygon] | None = None
    """What to read; None for the whole image."""
    model: str | None = None
    """Name or file; None for the one that suits the image."""
    spacing: float | None = None
    """None for the model's."""
    start_over: bool = False


@dataclass(frozen=True)
class Ended:
    """How a run has ended."""

    summary: dict[str, Any] | None
    """Of a run that is complete."""
    error: str
    """Of another, in words; empty for one that was asked to end."""


class Run:
    """A run that goes on."""

    def __init__(self, store: Path, command: Sequence[str]) -> None:
        self.store = store
        self._stopped = False
        # Files never fill up as pipes do that nobody reads.
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._errors
        )

    def goes_on(self) -> bool:
        """Tell whether the process is there."""
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Ask the run to end, which it does within seconds; its store can be taken up."""
        self._stopped = True
        self._process.terminate()

    def stop(self) -> None:
        """End the run and wait for it."""
        self.ask_to_stop()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ended(self) -> Ended:
        """Return how the run has ended; asked once."""
        code = self._process.wait()
        out, errors = (_text(file) for file in (self._out, self._errors))
        if code == 0:
            (summary,) = json.loads(out)["images"]
            return Ended(summary, "")
        if self._stopped:
            return Ended(None, "")
        lines = [line for line in errors.splitlines() if line.startswith("gigavim: ")]
        if lines:
            return Ended(None, _for_the_panel(lines[-1].removeprefix("gigavim: ")))
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return Ended(None, f"the run has ended with {how} ({last}); the same run continues it")


def launch(request: Request) -> Run:
    """Start a run.

    Raises
    ------
    GigavimError
        If the area cannot be written, or the image not be read.
    """
    with writing(request.folder):
        request.folder.mkdir(parents=True, exist_ok=True)
    if not os.access(request.folder, os.W_OK):
        raise StoreError(f"{request.folder} cannot be written to; choose another folder")
    store = store_path(request.image, request.folder, alone=False)
    command = [sys.executable, "-m", "gigavim", "run", request.image, "--json"]
    if request.polygons is not None:
        store, mask = _area(request, store)
        command += ["--mask", str(mask)]
    command += ["--output", str(store)]
    if request.model is not None:
        command += ["--model", request.model]
    if request.spacing is not None:
        command += ["--spacing", repr(request.spacing)]
    if request.start_over:
        command.append("--force")
    return Run(store, command)


def _area(request: Request, store: Path) -> tuple[Path, Path]:
    """Write down the area beside the store, both named by it: the same area is the same run."""
    if not request.polygons:
        raise GigavimError("there is no area to run; draw a rectangle, polygon or ellipse")
    source = open_source(request.image)
    if source.spacing is None:
        raise NoSpacingError(no_spacing(source))
    text = geojson(request.polygons, source).encode()
    number = hashlib.sha256(text).hexdigest()[:8]
    stem = store.name.removesuffix(SUFFIX)
    mask = store.with_name(f"{stem}.area-{number}.geojson")
    with writing(mask):
        write_file(mask, text)
    return store.with_name(f"{stem}.area-{number}{SUFFIX}"), mask


def _for_the_panel(error: str) -> str:
    """Say what the shell's remedies are here."""
    for option, here in (
        ("--force", "'Start over'"),
        ("with -o", "in another folder"),
        ("--model", "'Model'"),
        ("--spacing", "'Pixel size'"),
    ):
        error = error.replace(option, here)
    return error


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")
