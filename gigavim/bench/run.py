"""``gigavim bench run``: a whole run, as a user starts it, beside reading the same pixels alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gigavim.bench.show import Plot, Row
from gigavim.config import Mode, RunConfig
from gigavim.pipelines.plan import make_plan, set_up
from gigavim.pipelines.stream import reader_pool, stream
from gigavim.sample import make_slide

PLOT = Plot(
    "mode",
    {"megapixels_per_s": "megapixels/s", "peak_mib": "MiB, at most"},
    lines=("image", "spacing"),
)


def bench_run(
    image: Path | None = None,
    *,
    spacings: Sequence[float] = (1.0,),
    modes: Sequence[Mode] = ("whole", "tiles"),
    readers: int = 2,
) -> Iterator[Row]:
    """Time ``gigavim run`` in a process of its own, with the shipped model.

    Parameters
    ----------
    image
        A slide or scene; by default the sample slide.
    spacings
        Sides of a pixel that the model sees, µm or CRS units.
    modes
        Ways to read it.
    readers
        Threads that read.

    Yields
    ------
    row
        ``seconds`` holds everything, start of Python included; ``times_reading`` is that relative
        to reading the same pixels in this process and doing nothing with them.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = image or Path(folder, "sample.svs")
        if image is None:
            make_slide(path)
        for spacing in spacings:
            reading_s = _read_alone(path, spacing, readers)
            for mode in modes:
                row = _run(path, Path(folder, "out"), spacing, mode, readers)
                yield {**row, "times_reading": round(float(row["seconds"]) / reading_s, 2)}


def _read_alone(path: Path, spacing: float, readers: int) -> float:
    plan = make_plan(set_up(str(path), RunConfig(spacing=spacing)))
    with reader_pool(readers) as client:
        start = time.perf_counter()
        for _ in stream(client, plan.reader, plan.blocks, ahead=2 * readers):
            pass
        return time.perf_counter() - start


def _run(path: Path, out: Path, spacing: float, mode: Mode, readers: int) -> Row:
    command = [sys.executable, "-m", "gigavim", "run", str(path), "--json", "--force"]
    options = ["--spacing", str(spacing), "--mode", mode, "--readers", str(readers), "-o", str(out)]
    start = time.perf_counter()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    (summary,) = json.loads(done.stdout)["images"]
    return {
        "image": path.name,
        "mode": mode,
        "spacing": spacing,
        "seconds": round(seconds, 2),
        "tokens": summary["tokens"],
        "tokens_per_s": round(summary["tokens"] / seconds),
        "megapixels_per_s": round(summary["megapixels"] / seconds, 1),
        "peak_mib": round(summary["peak_memory_bytes"] / 2**20),
        **{f"{name}_s": round(s, 2) for name, s in summary["stages"].items()},
    }
