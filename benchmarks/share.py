"""Workers that share one sequence, each pinned to one core: ``python benchmarks/share.py``.

One JSON line for each number of workers; they take turns, and the best round counts. ``uncut`` is
the encoder alone, in this process, on one core. ``cpu_s`` is of the busiest worker: what a machine
with nothing else to do would take. Linux, where a process can be pinned.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gigavim.bench.measure import best_in_turns
from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.models import vim_tiny
from gigavim.pipelines.share import DaskWorkers, dask_workers, mix_shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2**16)
    parser.add_argument("--chunk", type=int, help="tokens projected at once; by default all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure with")
    args = parser.parse_args()
    chunk = args.chunk or args.tokens
    cores = sorted(os.sched_getaffinity(0))

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = vim_tiny(classes=0)
    tokens = np.random.default_rng(0).normal(size=(args.tokens, 192)).astype(np.float32)
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary, ExitStack() as clusters:
        folder = Path(temporary)
        spec = ModelSpec(encoder.config, mean=(0.5,) * 3, std=(0.5,) * 3)
        save_model(folder / "vim.safetensors", encoder, spec)
        model = load_model(folder / "vim.safetensors")

        def uncut() -> None:
            with torch.inference_mode():
                model.encoder.mix(torch.from_numpy(tokens)[None], chunk=chunk)

        def shared(workers: DaskWorkers) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                mix_shared(workers, model, [tokens], len(tokens), folder=Path(scratch), chunk=chunk)

        contestants: dict[str, Callable[[], None]] = {"uncut": uncut}
        clocks: dict[str, Callable[[], list[float]]] = {"uncut": lambda: [time.process_time()]}
        for count in args.workers:
            workers = clusters.enter_context(dask_workers(count))
            for number, address in enumerate(workers.client.nthreads()):
                core = cores[number % len(cores)]
                workers.client.run(pin, core, workers=[address])
            contestants[f"{count} workers"] = partial(shared, workers)
            clocks[f"{count} workers"] = partial(clock, workers)
        for work in contestants.values():  # loads what is loaded on first use
            work()
        load = os.getloadavg()[0]
        seconds = best_in_turns(contestants, args.rounds)
        cpu_s = {}
        for name, work in contestants.items():
            before = clocks[name]()
            work()
            cpu_s[name] = max(b - a for a, b in zip(before, clocks[name](), strict=True))
    reference = f"{args.workers[0]} workers"
    for name, best in seconds.items():
        row = {
            "benchmark": "share",
            "workers": name,
            "tokens": args.tokens,
            "chunk": chunk,
            "seconds": round(best, 2),
            "cpu_s": round(cpu_s[name], 2),
            "us_per_token": round(best / args.tokens * 1e6, 1),
            "speedup": round(seconds[reference] / best, 2),
            "cpu_speedup": round(cpu_s[reference] / cpu_s[name], 2),
            "load_before": round(load, 1),
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        print(json.dumps(row), flush=True)


def clock(workers: DaskWorkers) -> list[float]:
    return list(workers.client.run(time.process_time).values())


def pin(core: int) -> None:
    torch.set_num_threads(1)
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


if __name__ == "__main__":
    main()
