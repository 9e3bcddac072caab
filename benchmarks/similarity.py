"""How long it takes to find what a patch is like: ``python benchmarks/similarity.py``, JSON lines.

A million tokens in a store on disk: the time to read them once, the time of a question to the
features held, beside the bare product of matrix and vector in NumPy and PyTorch, and of a question
to features that are too many to be held. Contestants take turns; the best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when the libraries are loaded

import numpy as np
import torch
import zarr

from gigavim.similarity import read_features
from gigavim.store.tables import write_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 128, 192])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="for the stores; by default a temporary one")
    args = parser.parse_args()
    for width in args.widths:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure(zarr.create_group(folder), args.tokens, width, args.rounds)


def measure(group: zarr.Group, tokens: int, width: int, rounds: int) -> None:
    random = np.random.default_rng(0)
    sizes = [min(65_536, tokens - start) for start in range(0, tokens, 65_536)]
    parts = (random.standard_normal((size, width), np.float32) for size in sizes)
    write_table(group, "features", parts, (tokens, width), np.float16)
    stored: Any = group["features"]

    valid = np.ones(tokens, np.bool_)
    start = time.perf_counter()
    table = read_features(stored, valid, memory=4 * tokens * width)
    read_s = time.perf_counter() - start
    assert isinstance(table.rows, np.ndarray)
    unheld = read_features(stored, valid, memory=0)

    rows, asked = table.rows, tokens // 2
    tensor = torch.from_numpy(rows)
    contestants: dict[str, Callable[[], Any]] = {
        "question": lambda: table.similar(asked, 51),
        "numpy product alone": lambda: rows @ rows[asked],
        "torch product alone": lambda: tensor @ tensor[asked],
    }
    wall, cpu = compare(contestants, rounds)
    slow, slow_cpu = compare({"question to the store": lambda: unheld.similar(asked, 51)}, 2)
    result = {
        "benchmark": "similarity",
        "tokens": tokens,
        "width": width,
        "threads": torch.get_num_threads(),
        "held_mb": round(rows.nbytes / 1e6),
        "read_s": round(read_s, 1),
        "wall_ms": wall | slow,
        "cpu_ms": cpu | slow_cpu,
    }
    print(json.dumps(result), flush=True)


def compare(
    contestants: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the best wall and processor time of each, in ms."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    return tuple(  # type: ignore[return-value]
        {name: round(1000 * min(times)) for name, times in kind.items()} for kind in (wall, cpu)
    )


if __name__ == "__main__":
    main()
