"""What a terminal shows of a batch: a line an image, and a table of what would be done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich import box
from rich.console import Console
from rich.table import Table

from gigavim.pipelines.batches.batch import Forecast
from gigavim.pipelines.batches.schedule import Done


class Lines:
    """A line on stdout for each image that is done, and on stderr for each that failed."""

    def __init__(self, images: int, *, quiet: bool) -> None:
        self._images, self._quiet = images, quiet
        self._done = 0
        self._started = time.perf_counter()

    def __call__(self, done: Done, share: float) -> None:
        """Say what became of an image; ``share`` of the pixels of all of them is done."""
        self._done += 1
        summary = done.summary
        count = f"[{self._done:,}/{self._images:,}]"
        if summary.status == "failed":
            # Most messages begin with the image already.
            text = summary.error or ""
            named = text if summary.image in text else f"{summary.image}: {text}"
            print(f"{count} gigavim: {named}", file=sys.stderr, flush=True)
        elif not self._quiet:
            what = "skipped, complete" if summary.status == "skipped" else "done"
            if summary.status == "complete":
                what = f"{'resumed and ' * summary.resumed}done in {_time(summary.seconds)}"
            left = (time.perf_counter() - self._started) * (1 - share) / max(share, 1e-9)
            more = f"; about {_time(left)} left" if self._done < self._images and share else ""
            print(f"{count} {summary.image}: {what}{more}", flush=True)


def print_forecast(rows: Sequence[Forecast], workers: int) -> None:
    """Print what a batch would do, in its order."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "image", "tokens", "time", "store", "scratch", "memory"):
        table.add_column(name, justify="left" if name == "image" else "right", overflow="fold")
    for number, row in enumerate(rows, 1):
        if row.error is not None:
            table.add_row(str(number), f"{row.image}\n  would fail: {row.error}")
            continue
        table.add_row(
            str(number),
            row.image,
            f"{row.tokens:,}",
            _time(row.seconds),
            _size(row.store_bytes),
            _size(row.scratch_bytes),
            _size(row.memory_bytes),
        )
    Console().print(table)
    totals = totals_of(rows, workers)
    print(
        f"{len(rows):,} images, of which {totals['would_fail']:,} would fail; "
        f"about {_time(totals['seconds'])} by {workers:,} workers, "
        f"{_size(totals['store_bytes'])} of results at most"
    )


def totals_of(rows: Sequence[Forecast], workers: int) -> dict[str, float]:
    """Sum up what a batch would take.

    The workers are done when the last is: not before the longest image, and on average before what
    all of them take together.
    """
    seconds = [row.seconds for row in rows]
    return {
        "images": len(rows),
        "would_fail": sum(row.error is not None for row in rows),
        "seconds": max([sum(seconds) / workers, *seconds]),
        "store_bytes": sum(row.store_bytes for row in rows),
    }


def print_counts(counts: Mapping[str, int], output: str) -> None:
    """Print what became of all images, and where to look."""
    told = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    print(f"{sum(counts.values()):,} images: {told}; see {output}")


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
