"""Time, peak memory, and a process of one's own to measure them in."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple, ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
T = TypeVar("T")


def best_in_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the seconds of each contestant's best round; other work meets all of them alike."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


class Best(NamedTuple):
    """The least that any round took."""

    seconds: float
    cpu_s: float
    """Of all threads; what else the machine does has less power over it."""


def best_of(work: Callable[[], object], *, least: int, seconds: float) -> Best:
    """Return the best of at least `least` rounds, more while `seconds` have not passed."""
    begun, rounds = time.perf_counter(), list[Best]()
    while len(rounds) < least or time.perf_counter() - begun < seconds:
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        rounds.append(Best(time.perf_counter() - start, time.process_time() - cpu_start))
    return Best(min(r.seconds for r in rounds), min(r.cpu_s for r in rounds))


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process, whose peak memory is then its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()


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
        while not self._ended.wait(0.002):
            self._highest = max(self._highest, self._process.memory_info().rss)

    @property
    def mib(self) -> float:
        """In mebibytes."""
        return float(self._highest - self._start) / 2**20
