"""How fast Vim-Ti embeds patches and mixes tokens, and in how much memory.

``python benchmarks/encoder.py`` prints one JSON line a measurement, then one a ratio of two
measurements of this run. Each is taken in a process of its own, so that its peak memory is its own.
The weights are random, which changes nothing about speed and makes the features meaningless.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import psutil
import torch

from gigavim.kernels import scan_backend
from gigavim.models import vim_tiny

PATCHES_AT_ONCE = 4096
"""As many as a run embeds together."""


@dataclass(frozen=True)
class Case:
    operation: str
    tokens: int
    threads: int
    chunk: int | None


@dataclass(frozen=True)
class Result(Case):
    seconds: float
    cpu_s: float
    """Of all threads, over which other work on the machine has less power."""
    tokens_per_s: float
    peak_mib: float
    """Above what the model and the tokens given took."""
    scan: str


def measure(case: Case, repeats: int) -> Result:
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    encoder = vim_tiny(classes=0).eval()
    with torch.inference_mode():
        run = _prepared(case, encoder.embed, encoder.mix)
        encoder.mix(torch.randn(1, 64, encoder.config.width))  # loads what is loaded on first use
        with PeakMemory() as peak:
            seconds, cpu_s = min(_timed(run) for _ in range(repeats))
    return Result(
        **asdict(case),
        seconds=round(seconds, 3),
        cpu_s=round(cpu_s, 3),
        tokens_per_s=round(case.tokens / seconds),
        peak_mib=round(peak.mib),
        scan=scan_backend("cpu", torch.float32).name,
    )


def _prepared(
    case: Case, embed: Callable[..., object], mix: Callable[..., object]
) -> Callable[[], object]:
    if case.operation == "embed":
        patches = torch.randn(min(case.tokens, PATCHES_AT_ONCE), 16, 16, 3)
        rest = case.tokens % len(patches)
        whole = case.tokens // len(patches)
        return lambda: [embed(patches) for _ in range(whole)] + [embed(patches[:rest])]
    tokens = torch.randn(1, case.tokens, 192)
    return lambda: mix(tokens, chunk=case.chunk)


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu_start


class PeakMemory:
    """The highest resident memory while its body runs, above that at its start."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._start = self._highest = self._process.memory_info().rss
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self._highest = max(self._highest, self._process.memory_info().rss)

    @property
    def mib(self) -> float:
        return float(self._highest - self._start) / 2**20


def ratios(results: list[Result]) -> Iterator[dict[str, object]]:
    """Compare what differs in one thing only."""
    found = {(r.operation, r.tokens, r.threads, r.chunk): r for r in results}
    for r in results:
        about = {"operation": r.operation, "tokens": r.tokens, "threads": r.threads}
        one = found.get((r.operation, r.tokens, 1, r.chunk))
        if one and r.threads > 1:
            yield {
                "ratio": "speed to that of 1 thread", **about, "chunk": r.chunk,
                "value": round(one.seconds / r.seconds, 2),
            }  # fmt: skip
        whole = found.get((r.operation, r.tokens, r.threads, None))
        if whole and r.chunk:
            yield {
                "ratio": "speed in chunks to whole", **about, "chunk": r.chunk,
                "value": round(whole.seconds / r.seconds, 2),
            }  # fmt: skip
            yield {
                "ratio": "memory in chunks to whole", **about, "chunk": r.chunk,
                "value": round(r.peak_mib / max(1, whole.peak_mib), 2),
            }  # fmt: skip
    for operation, threads, chunk in dict.fromkeys(
        (r.operation, r.threads, r.chunk) for r in results
    ):
        like = [
            r for r in results if (r.operation, r.threads, r.chunk) == (operation, threads, chunk)
        ]
        if len(like) > 1:
            yield {
                "ratio": f"time of a token among {like[-1].tokens} to one among {like[0].tokens}",
                "operation": operation, "threads": threads, "chunk": chunk,
                "value": round(like[0].tokens_per_s / like[-1].tokens_per_s, 2),
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time Vim-Ti with random weights on this CPU.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chunk", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=2, help="the best counts")
    asked = parser.parse_args()

    print(json.dumps({"machine": platform.platform(), "torch": torch.__version__}))
    results = []
    spawn = multiprocessing.get_context("spawn")
    for threads in asked.threads:
        for tokens in asked.tokens:
            chunks = [None, *(chunk for chunk in asked.chunk if chunk < tokens)]
            cases = [Case("embed", tokens, threads, None)]
            cases += [Case("mix", tokens, threads, chunk) for chunk in chunks]
            for case in cases:
                with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                    results.append(alone.submit(measure, case, asked.repeats).result())
                print(json.dumps(asdict(results[-1])), flush=True)
    for ratio in ratios(results):
        print(json.dumps(ratio))


if __name__ == "__main__":
    main()
