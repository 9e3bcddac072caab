"""What is done for one image, at a worker.

A worker is a process of its own that has one image at a time and keeps its model for the next. What
is wrong with an image comes back as words; whether trying again may help is told here, where the
cause is known.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gigavim import __version__
from gigavim.config import Resources
from gigavim.errors import GigavimError, StoreBusyError
from gigavim.memory import keep_freed_memory
from gigavim.pipelines.batches.manifest import Job
from gigavim.pipelines.batches.staging import Stage, StagePlan
from gigavim.pipelines.report import Summary

MAY_PASS = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "ENOSPC", "EDQUOT", "EMFILE",
        "ENFILE", "ENOLCK", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ECONNRESET",
        "ECONNREFUSED", "ECONNABORTED", "ENOTCONN", "EREMOTEIO",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""What a disk or a server may get over by itself."""

_one_image = threading.Lock()


@dataclass(frozen=True, slots=True)
class Task:
    """An image for a worker."""

    job: Job
    resources: Resources
    batch: str
    version: str
    """Of the client; workers must have the same."""
    force: bool = False
    command: tuple[str, ...] = ()
    page: bool = False
    """Whether to write a page of the result beside it, as HTML."""
    stage: StagePlan | None = None
    upcoming: str | None = None
    """The image that the worker is likely to have next."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an image at a worker."""

    summary: Summary
    host: str
    pid: int
    begun: str
    seconds: float
    may_pass: bool = False
    """Whether the same may succeed another time, where it failed."""
    busy: bool = False
    """Whether another run has the store."""
    page: str | None = None


def map_image(task: Task) -> Outcome:
    """Map an image, with all cores of the worker; another that comes meanwhile waits."""
    with _one_image:
        _prepare_process()
        begun, started = _now(), time.perf_counter()
        found: dict[str, Any]
        try:
            found = {"summary": _mapped(task)}
            if task.page:
                found["page"] = _page(task)
        except (GigavimError, OSError) as error:
            found = {
                "summary": Summary(task.job.image, "failed", error=str(error)),
                "may_pass": may_pass(error),
                "busy": isinstance(error, StoreBusyError),
            }
        seconds = time.perf_counter() - started
        return Outcome(
            host=socket.gethostname(), pid=os.getpid(), begun=begun, seconds=seconds, **found
        )


def pixels_of(task: Task) -> float:
    """Return the size of an image in pixels at the spacing of its run; 0 where it cannot be told.

    What is wrong with it, the run says.
    """
    from gigavim.pipelines.plan import set_up
    from gigavim.pipelines.run import pick_device

    with _one_image:
        _prepare_process()
        try:
            device = pick_device(task.resources.device)
            grid = set_up(task.job.image, task.job.config, device).grid
        except (GigavimError, OSError):
            return 0.0
        return float(grid.rows * grid.columns * grid.stride**2)


def forecast_of(task: Task) -> dict[str, Any]:
    """Estimate what the run of an image will take; ``error`` says why there will be none."""
    from gigavim.pipelines.inspect import describe

    with _one_image:
        _prepare_process()
        try:
            run = describe(task.job.image, task.job.config, task.resources)["run"]
        except (GigavimError, OSError) as error:
            return {"error": str(error)}
        return {"error": run["not_possible"]} if "not_possible" in run else run


def clear_stage(plan: StagePlan) -> None:
    """Remove the copies that this worker has made."""
    with _one_image:
        _stage(plan).clear()


def may_pass(error: BaseException) -> bool:
    """Tell whether trying again may help: a disk or a server failed, not the image."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno in MAY_PASS or isinstance(cause, TimeoutError)
        cause = cause.__cause__
    return False


def _prepare_process() -> None:
    """Make a process what `gigavim` itself is, with the cores that its worker was given."""
    import torch
    from distributed import get_worker

    keep_freed_memory()
    # Of this thread, by OpenMP; Dask has several.
    torch.set_num_threads(get_worker().state.nthreads)


def _mapped(task: Task) -> Summary:
    from gigavim.pipelines.run import run_image

    if task.version != __version__:
        raise GigavimError(
            f"the worker on {socket.gethostname()} has GigaVim {__version__}, the client "
            f"{task.version}; install the same version for all workers"
        )
    job = task.job
    with _copy(task) as copy:
        try:
            return run_image(
                job.image,
                job.store,
                job.config,
                task.resources,
                force=task.force,
                command=task.command,
                copy=copy,
                batch=task.batch,
            )
        except GigavimError as error:
            if copy is None:
                raise
            # The user knows the image, not its copy.
            raise type(error)(str(error).replace(str(copy), job.image)) from error


@contextmanager
def _copy(task: Task) -> Iterator[Path | None]:
    """Give a copy of the image on a local disk, where there is to be one."""
    held = (
        nullcontext(None)
        if task.stage is None
        else _stage(task.stage).holding(task.job.image, task.upcoming)
    )
    with held as path:
        yield path


@functools.cache
def _stage(plan: StagePlan) -> Stage:
    return Stage(plan)


def _page(task: Task) -> str:
    from gigavim.views.html import write_report

    store = task.job.store
    page = store.with_name(store.name.removesuffix(".zarr").removesuffix(".gigavim") + ".html")
    if not page.exists() or page.stat().st_mtime < (store / "zarr.json").stat().st_mtime:
        write_report(store, page)
    return str(page)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
