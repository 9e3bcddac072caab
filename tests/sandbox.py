"""Opens and reads an image in a process of its own, so that what breaks is that process.

A nursery imports everything once and forks for each image; limits on memory and time hold for the
fork alone. Run as a program, this file is the nursery: paths in, outcomes out, a JSON line each.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GOOD = ("read", "refused")
"""Outcomes that are as they should be: it could be read, or a line says why not."""
BAD = ("crash", "hang", "memory", "foreign", "unclear")
"""Ended by a signal; out of time; out of memory; an exception not ours; an error of ours that names
no file or has several lines."""

MEMORY_BYTES = 2 << 30
"""What reading may add to what is imported."""
CPU_S = 30
WALL_S = 180


class Sandbox:
    """A nursery, as a context."""

    def __init__(self, model: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._nursery = subprocess.Popen(
            [sys.executable, __file__, str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._nursery.communicate()

    def open(self, image: Path) -> dict[str, Any]:
        """Return the ``outcome`` of reading an image, its ``detail``, time and memory."""
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"{image}\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        assert line, "the nursery itself has ended"
        result: dict[str, Any] = json.loads(line)
        return result


def main() -> None:
    model = sys.argv[1]
    _import_all(model)
    for line in sys.stdin:
        print(json.dumps(_in_a_fork(line.rstrip("\n"), model)), flush=True)


def _import_all(model: str) -> None:
    import openslide  # noqa: F401
    import rasterio  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import skimage.filters  # noqa: F401
    import tifffile  # noqa: F401
    import torch

    import gigavim.pipelines.inspect
    import gigavim.sources.ngff_source
    import gigavim.sources.openslide_source
    import gigavim.sources.raster_source
    import gigavim.sources.recognise
    import gigavim.sources.remote
    import gigavim.sources.stack
    import gigavim.sources.tiff_source
    import gigavim.tissue  # noqa: F401
    from gigavim.checkpoint import load_model

    torch.set_num_threads(1)
    # Much of PyTorch is imported on first use.
    load_model(model)


def _in_a_fork(path: str, model: str) -> dict[str, Any]:
    """Read in a fork, and say how it ended."""
    started = time.perf_counter()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(said.fileno(), 2)
            os.dup2(said.fileno(), 1)
            _limit()
            report = json.dumps(_attempt(path, model)).encode()
            os.write(writing, report[:60_000])
            os._exit(0)
        os.close(writing)
        ready, _, _ = select.select([reading], [], [], WALL_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
        report = os.read(reading, 65_536) if ready else b""
        os.close(reading)
        _, status, used = os.wait4(child, 0)
        said.seek(0)
        tail = said.read()[-2000:].decode(errors="replace").strip()
    result = json.loads(report) if report else _ended(status, tail, timed_out=not ready)
    return result | {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": used.ru_maxrss // 1024,
    }


def _limit() -> None:
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _ended(status: int, said: str, *, timed_out: bool) -> dict[str, Any]:
    """Name the end of a process that could not tell."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    name = signal.Signals(number).name if number else f"exit {status}"
    if timed_out or name == "SIGXCPU":
        return {"outcome": "hang", "detail": name}
    out_of_memory = "bad_alloc" in said or "memory" in said.lower()
    return {"outcome": "memory" if out_of_memory else "crash", "detail": f"{name} {said[-300:]}"}


def _attempt(path: str, model: str) -> dict[str, Any]:
    from gigavim.errors import GigavimError

    try:
        return {"outcome": "read", "errors": _read(path, model)}
    except GigavimError as error:
        text = str(error)
        clear = "\n" not in text and Path(path).name in text
        return {"outcome": "refused" if clear else "unclear", "detail": text}
    except MemoryError:
        return {"outcome": "memory", "detail": traceback.format_exc()[-1500:]}
    except BaseException as error:
        where = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
        ]
        return {
            "outcome": "foreign",
            "detail": f"{type(error).__name__}: {str(error)[:300]} at {' '.join(where[-8:])}",
        }


def _read(path: str, model: str) -> int:
    """Do what ``gigavim info`` and a run do; return how many parts could not be decoded."""
    from gigavim.config import Resources, RunConfig
    from gigavim.foreground import thumbnail
    from gigavim.geometry import Window
    from gigavim.pipelines.inspect import describe
    from gigavim.sources import Plane, open_source
    from gigavim.store import fingerprint

    fingerprint(path)
    source = open_source(path)
    errors = 0
    for number, level in enumerate(source.levels):
        for y, x in ((0, 0), (level.height // 2, level.width // 2), (level.height, level.width)):
            pixels = source.read_level(number, Window(y - 9, x - 9, 200, 200))
            assert pixels.values.shape == (200, 200, len(source.bands))
            assert not pixels.values[~pixels.valid].any()
            errors += len(pixels.errors)
    if source.spacing is not None:
        finest = max(source.spacing.y, source.spacing.x)
        errors += len(Plane.at(source, 2.5 * finest).read(Window(20, 30, 40, 50)).errors)
    thumbnail(source, 256)
    config = RunConfig(model=model, source_spacing=None if source.spacing else (0.5, 0.5))
    describe(path, config, Resources(device="cpu"))
    return errors


if __name__ == "__main__":
    main()
