"""Times whole runs: ``python benchmarks/run.py [SLIDE]``, one JSON line a result.

Each case is `gigavim run` in a process of its own, as a user starts it, with the shipped model;
without a slide, on the sample. `times_reading` is the time of the run relative to reading the same
pixels alone, in this process; `seconds` holds everything, start of Python included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gigavim.config import RunConfig
from gigavim.pipelines.plan import make_plan, set_up
from gigavim.pipelines.stream import reader_pool, stream
from gigavim.sample import make_slide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--spacing", type=float, nargs="+", default=[1.0])
    parser.add_argument("--mode", nargs="+", default=["whole", "tiles"])
    parser.add_argument("--readers", type=int, default=2)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder, "sample.svs")
        if args.slide is None:
            make_slide(slide)
        for spacing in args.spacing:
            reading_s = read_alone(slide, spacing, args.readers)
            for mode in args.mode:
                result = run(slide, Path(folder, "out"), spacing, mode, args.readers)
                ratio = {"times_reading": round(result["seconds"] / reading_s, 2)}
                print(json.dumps({"benchmark": "run", **result, **ratio}), flush=True)


def read_alone(slide: Path, spacing: float, readers: int) -> float:
    """Read and cut the pixels of a run, and do nothing with them."""
    plan = make_plan(set_up(str(slide), RunConfig(spacing=spacing)))
    with reader_pool(readers) as client:
        start = time.perf_counter()
        for _ in stream(client, plan.reader, plan.blocks, ahead=2 * readers):
            pass
        return time.perf_counter() - start


def run(slide: Path, out: Path, spacing: float, mode: str, readers: int) -> dict[str, object]:
    command = [sys.executable, "-m", "gigavim", "run", str(slide), "--json", "--force"]
    options = ["--spacing", str(spacing), "--mode", mode, "--readers", str(readers), "-o", str(out)]
    start = time.perf_counter()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    (summary,) = json.loads(done.stdout)["images"]
    return {
        "slide": slide.name,
        "mode": mode,
        "spacing_um": spacing,
        "seconds": round(seconds, 2),
        "tokens": summary["tokens"],
        "tokens_per_s": round(summary["tokens"] / seconds),
        "megapixels_per_s": round(summary["megapixels"] / seconds, 1),
        "peak_mib": round(summary["peak_memory_bytes"] / 2**20),
        "stages_s": {name: round(s, 2) for name, s in summary["stages"].items()},
    }


if __name__ == "__main__":
    main()
