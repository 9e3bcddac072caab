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
    assert summary.spacing is not None
    assert summary.unit is not None
    _print_lines(
        {
            "read": f"{summary.tokens:,} patches at {_spacing(summary.spacing, summary.unit)}, "
            f"from {summary.megapixels:,.0f} megapixels",
            "problems": _problems(summary),
            "quality": "; ".join(summary.faults),
            "image": ", ".join(
                f"{name} {score:.0%}" for name, score in summary.scores.items() if score >= 0.05
            ),
            "classes": _classes(summary),
            "nuclei": _nuclei(summary),
            "time": ", ".join(f"{stage} {_seconds(s)}" for stage, s in summary.stages.items()),
            "memory": f"peak {_bytes(summary.peak_memory_bytes)}",
            "on the GPU": f"peak {_bytes(summary.peak_device_memory_bytes)}"
            if summary.peak_device_memory_bytes is not None
            else None,
            "store": summary.store,
            "picture": summary.overlay,
            "map": summary.geotiff,
            "outlines": summary.geojson,
            "table": summary.table,
        }
    )


def print_description(facts: Mapping[str, Any]) -> None:
    """Print what an image is, and what a run would read."""
    size, own, run = facts["size"], facts["spacing"], facts["run"]
    print(f"{facts['image']}: {facts['kind']}, read by {facts['reader']}")
    _print_lines(
        {
            "size": f"{size['width']:,} x {size['height']:,} px, "
            f"{size['megapixels']:,.0f} megapixels",
            "spacing": own
            and f"{_spacing((own['y'], own['x']), own['unit'])}, from {own['taken_from']}",
            "crs": facts["crs"],
            "levels": ", ".join(
                f"{level['width']:,} x {level['height']:,}" for level in facts["levels"]
            ),
            "bands": f"{', '.join(facts['bands'])} ({facts['dtype']})",
            **facts["metadata"],
        }
    )
    if "not_possible" in run:
        print(f"It cannot be run: {run['not_possible']}")
        return
    default = f" (the default for {run['default_for']})" if run["default_for"] else ""
    place = f"{run['mode']}, at {_spacing(run['spacing'], run['unit'])}"
    print(f"A run with {run['model']}{default}, {place}")
    _print_lines(
        {
            "reads": f"{run['patches']:,} patches, {run['foreground_share']:.0%} of the image, "
            f"from {run['megapixels']:,.0f} megapixels of level {run['level_read']}",
            "encodes": f"{run['tokens']:,} tokens",
            "memory": f"at most about {_bytes(run['memory_bytes'])}, "
            f"of {_bytes(run['memory_limit_bytes'])} that it may take",
            "on the GPU": run["device_memory_limit_bytes"]
            and f"at most about {_bytes(run['device_memory_bytes'])}, "
            f"of {_bytes(run['device_memory_limit_bytes'])} that it may take",
            "mixes": _mixing(run),
            "time": f"about {_seconds(run['seconds'])}",
        }
    )


def print_checkup(facts: Mapping[str, Any]) -> None:
    """Print what is installed, what will be used, and what is missing."""
    print(f"gigavim {facts['gigavim']} on Python {facts['python']}, {facts['platform']}")
    _print_lines({**facts["packages"], **facts["libraries"]})
    for device in facts["devices"]:
        print(f"device {device['name']}: {device['what']}, {_bytes(device['memory_bytes'])}")
    for kernel in facts["kernels"]:
        print(f"scan on {kernel['device']}: {kernel['scan']}, {kernel['reason']}")
        if kernel["bfloat16"]:
            print(f"products on {kernel['device']}: --precision bfloat16 is faster here")
    print(f"models: {', '.join(facts['models']) or 'none'}")
    for item in facts["missing"]:
        print(f"missing: {item['what']}; {item['fix']}")
    if not facts["missing"]:
        print("nothing is missing")


def print_models(listed: Sequence[Mapping[str, Any]]) -> None:
    """Print what can be run, and below it what could be with weights of one's own."""
    for model in listed:
        if "parameters" not in model:
            print(f"{model['name']:<16}no model: {model['about']}")
            continue
        size = f"{model['parameters'] / 1e6:.1f} M parameters, patches of {model['patch']} px"
        print(f"{model['name']:<16}{size}")
        for line in (model["about"], ", ".join(model["classes"]), model["training_data"]):
            if line:
                print(f"{'':<16}{line}")
        if model["about"] == "as asked":
            _print_card(model)


def _print_card(model: Mapping[str, Any]) -> None:
    """Print what a model's card holds: where it is meant for, and how good it was found to be."""
    if model["spacing"]:
        print(f"{'':<16}{model['spacing']:g} {model['unit'] or ''}/px, {', '.join(model['bands'])}")
    for name in ("licence", "split"):
        if model[name]:
            print(f"{'':<16}{name} {model[name]}")
    metrics = model["metrics"]
    for name, value in metrics.items():
        if f"{name} low" in metrics:
            low, high = metrics[f"{name} low"], metrics[f"{name} high"]
            print(f"{'':<16}{name} {value:.3f} ({low:.3f} to {high:.3f})")
        elif not name.endswith((" low", " high")):
            print(f"{'':<16}{name} {round(value, 3):,}")


def _print_lines(lines: Mapping[str, str | None]) -> None:
    """Print names and what there is to say of them, in two columns."""
    width = 2 + max(len(name) for name in lines)
    for name, text in lines.items():
        if text:
            print(f"  {name:<{width}}{text}")


def _spacing(spacing: Sequence[float], unit: str) -> str:
    y, x = spacing
    size = f"{x:.4g}" if abs(y - x) <= 1e-3 * x else f"{x:.4g} x {y:.4g}"
    return f"{size} {unit}/px"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _mixing(run: Mapping[str, Any]) -> str:
    """Say in what parts the sequence is mixed, and where the rest waits."""
    if run["mode"] != "whole":
        return ""
    where = {
        "device": "on the GPU",
        "host": "in memory",
        "disk": f"{_bytes(run['scratch_bytes'])} on the disk",
    }[run["residual_on"]]
    return f"in chunks of {run['chunk']:,} tokens; between layers they wait {where}"


def _classes(summary: Summary) -> str:
    """Name the classes that there are, the largest first."""
    found = sorted(summary.classes.items(), key=lambda item: -item[1])
    areas = {
        name: f", {area:.3g} {summary.area_unit}" for name, area in summary.class_areas.items()
    }
    return "; ".join(f"{name} {share:.0%}{areas.get(name, '')}" for name, share in found if share)


def _nuclei(summary: Summary) -> str:
    if summary.nuclei is None:
        return ""
    return f"{summary.nuclei:,}, {summary.nuclei_per_mm2:,.0f} per mm²"


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
