"""What a terminal shows: a bar while a run lasts, one summary at its end, facts when asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gigavim.pipelines.report import Summary

logger = logging.getLogger(__name__)


class BarProgress:
    """A progress bar on stderr where that is a terminal, and a line in the log every tenth."""

    def __init__(self, *, visible: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not (visible and console.is_terminal),
        )
        self._task: TaskID | None = None
        self._title = ""
        self._total = self._tokens = 0
        self._megapixels = self._started = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, title: str, tokens: int) -> None:
        """Begin a stage that will see so many tokens."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._title, self._total = title, tokens
        self._tokens, self._megapixels, self._started = 0, 0.0, time.perf_counter()
        self._task = self._bar.add_task(title, total=tokens, speed="")

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        """Count tokens, and level pixels read for them."""
        before = self._tokens
        self._tokens += tokens
        self._megapixels += megapixels
        seconds = max(1e-9, time.perf_counter() - self._started)
        speed = f"{self._tokens / seconds:,.0f} tokens/s"
        if self._megapixels:
            speed += f", {self._megapixels / seconds:,.0f} megapixels/s"
        if self._task is not None:
            self._bar.update(self._task, completed=self._tokens, speed=speed)
        if self._tokens * 10 // self._total > before * 10 // self._total:
            logger.info("%s: %.0f %%, %s", self._title, 100 * self._tokens / self._total, speed)


def print_summary(summary: Summary) -> None:
    """Print what was read, how long it took, and where to look."""
    if summary.status == "skipped":
        print(f"{summary.image}: skipped, {summary.store} is complete (--force starts over)")
        return
    begun = "resumed and finished" if summary.resumed else "done"
    print(f"{summary.image}: {begun} in {_seconds(summary.seconds)}")
    lines = {
        "read": f"{summary.tokens:,} patches at {_spacing(summary)}, from "
        f"{summary.megapixels:,.0f} megapixels",
        "problems": _problems(summary),
        "classes": ", ".join(f"{name} {share:.0%}" for name, share in summary.classes.items()),
        "time": ", ".join(f"{stage} {_seconds(s)}" for stage, s in summary.stages.items()),
        "memory": f"peak {summary.peak_memory_bytes / 2**20:,.0f} MiB",
        "store": summary.store,
        "picture": summary.overlay,
        "map": summary.geotiff,
    }
    for name, text in lines.items():
        if text:
            print(f"  {name:<9}{text}")


def print_facts(facts: Mapping[str, Any], indent: int = 0) -> None:
    """Print nested facts, one a line."""
    pad = "  " * indent
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            print(f"{pad}{label}")
            print_facts(value, indent + 1)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{pad}{label}")
            for item in value:
                print(
                    f"{pad}  " + "  ".join(_text(key, each) for key, each in item.items() if each)
                )
        elif value not in (None, "", []):
            print(f"{pad}{label:<{24 - len(pad)}}{_text(name, value)}")


def print_models(listed: Sequence[Mapping[str, Any]]) -> None:
    """Print what can be run, and below it what could be with weights of one's own."""
    for model in listed:
        size = f"{model['parameters'] / 1e6:.1f} M parameters, patches of {model['patch']} px"
        print(f"{model['name']:<16}{size}")
        for line in (model["about"], model["training_data"]):
            if line:
                print(f"{'':<16}{line}")


def _text(name: str, value: Any) -> str:
    """Render a value with the unit that its name says."""
    if isinstance(value, list):
        return ", ".join(_text(name, item) for item in value)
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    if name == "seconds":
        return _seconds(value)
    if name.endswith("share"):
        return f"{value:.0%}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _spacing(summary: Summary) -> str:
    if summary.spacing is None:
        return "their own spacing"
    y, x = summary.spacing
    size = f"{x:.4g}" if abs(y - x) <= 1e-3 * x else f"{y:.4g} x {x:.4g}"
    return f"{size} {summary.unit}/px"


def _problems(summary: Summary) -> str:
    if not summary.read_errors:
        return ""
    return (
        f"{summary.read_errors:,} parts of the file could not be read; "
        f"{summary.unreadable_tokens:,} patches are left out (listed under errors/ in the store)"
    )


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
