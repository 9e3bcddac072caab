"""Damage images of every format and read them: ``PYTHONPATH=tests python benchmarks/faults.py``.

Each is read as ``gigavim info`` would, in a process with limits on memory and time. A JSON line for
each that is neither read nor refused in words, one for each format, and one for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from damage import KINDS, damage, write_originals
from images import write_model
from sandbox import BAD, Sandbox

SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--format", help="damage files of this name only")
    parser.add_argument("--kind", choices=KINDS, help="damage in this way only")
    parser.add_argument("--keep", type=Path, help="folder for the files that are badly read")
    args = parser.parse_args()
    started = time.perf_counter()
    outcomes: dict[str, Counter[str]] = {}
    slowest, largest, unread = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder / "model.safetensors")
        originals = write_originals(folder / "originals", SHARED if SHARED.is_dir() else None)
        originals = [path for path in originals if args.format in (None, path.name)]
        kinds = [args.kind] if args.kind else list(KINDS)
        ways = [(original, kind) for original in originals for kind in kinds]
        jobs = [(*ways[n % len(ways)], args.seed + n // len(ways)) for n in range(args.files)]
        for original, kind, seed, result in attempts(jobs, folder, args.processes, args.keep):
            outcome = result["outcome"]
            outcomes.setdefault(original, Counter())[outcome] += 1
            slowest, largest = max(slowest, result["cpu_s"]), max(largest, result["peak_mb"])
            unread += bool(result.get("errors"))
            if outcome in BAD:
                print(
                    json.dumps({"file": original, "kind": kind, "seed": seed, **result}), flush=True
                )
    for original, counts in sorted(outcomes.items()):
        print(json.dumps({"format": original, **counts}))
    total = sum(outcomes.values(), Counter())
    row = {
        "benchmark": "faults",
        "files": sum(total.values()),
        **{name: total[name] for name in ("read", "refused", *BAD)},
        "read with parts masked": unread,
        "slowest_cpu_s": slowest,
        "largest_peak_mb": largest,
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(row))
    sys.exit(any(total[name] for name in BAD))


def attempts(
    jobs: list[tuple[Path, str, int]], folder: Path, processes: int, keep: Path | None
) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Damage and read, some at a time."""
    free: SimpleQueue[Sandbox] = SimpleQueue()
    for _ in range(processes):
        free.put(Sandbox(folder / "model.safetensors"))

    def attempt(job: tuple[Path, str, int]) -> tuple[str, str, int, dict[str, Any]]:
        original, kind, seed = job
        sandbox = free.get()
        with tempfile.TemporaryDirectory(dir=folder) as place:
            result = sandbox.open(damage(original, kind, seed, Path(place)))
            if keep is not None and result["outcome"] in BAD:
                keep.mkdir(parents=True, exist_ok=True)
                Path(place).rename(keep / f"{original.name}-{kind}-{seed}")
                Path(place).mkdir()
        free.put(sandbox)
        return original.name, kind, seed, result

    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(attempt, jobs)


if __name__ == "__main__":
    main()
