"""A batch from the list of images to its summary."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gigavim import __version__
from gigavim.config import Resources
from gigavim.errors import GigavimError
from gigavim.pipelines.batches.cluster import Where, workers_at
from gigavim.pipelines.batches.ledger import Ledger, Table
from gigavim.pipelines.batches.manifest import Job
from gigavim.pipelines.batches.schedule import Done, Schedule, at_each
from gigavim.pipelines.batches.staging import StagePlan
from gigavim.pipelines.batches.worker import Task, clear_stage, forecast_of, pixels_of

INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class Batch:
    """How a batch is done. None of it changes a result."""

    output: Path
    """Folder for stores, ledger and table."""
    where: Where = field(default_factory=Where)
    resources: Resources = field(default_factory=Resources)
    retries: int = 2
    """After failures that may pass."""
    force: bool = False
    """Start over, whatever is there."""
    stage: StagePlan | None = None
    """Where to copy images before they are read."""
    pages: bool = False
    """Write a page for each image, and an index, as HTML."""
    performance_report: Path | None = None
    """Where Dask writes what the workers did."""
    command: tuple[str, ...] = ()
    """What the user typed, for the record."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a batch would do with an image."""

    image: str
    store: str
    tokens: int = 0
    seconds: float = 0.0
    store_bytes: int = 0
    scratch_bytes: int = 0
    """On the disk while it runs."""
    memory_bytes: int = 0
    error: str | None = None
    """Why it would fail."""


def run_batch(
    jobs: Sequence[Job],
    batch: Batch,
    on_done: Callable[[Done, float], None] = lambda done, share: None,
) -> dict[str, int]:
    """Map many images.

    Parameters
    ----------
    on_done
        Told of each image, and of the share of all pixels that is done.

    Returns
    -------
    counts
        How many images have which status.

    Raises
    ------
    GigavimError
        If there are no workers or the scheduler is lost; what is wrong with an image costs no other
        its result.
    """
    name = uuid.uuid4().hex[:12]
    counts: dict[str, int] = {}
    entries: list[Done] = []
    ledger = Ledger(batch.output, name)
    with ExitStack() as stack:
        client = stack.enter_context(workers_at(batch.where))
        if batch.performance_report is not None:
            stack.enter_context(_reporting(client, batch.performance_report))
        tasks = _tasks(jobs, batch, name)
        sizes = dict(at_each(client, pixels_of, tasks))
        order = sorted(sizes, key=lambda number: (-sizes[number], tasks[number].job.image))
        ledger.begin(shlex.join(batch.command), len(tasks))
        table = stack.enter_context(Table(batch.output))
        schedule = Schedule(client, [tasks[number] for number in order], ledger, batch.retries)
        total, finished = sum(sizes.values()), 0.0
        try:
            for done in schedule.run():
                status = done.summary.status
                counts[status] = counts.get(status, 0) + 1
                table.add(done.summary, done.attempts, done.host)
                finished += sizes[order[done.number]]
                if batch.pages:
                    entries.append(done)
                on_done(done, finished / total if total else 1.0)
        except BaseException as error:
            schedule.stop()
            ledger.write("batch ends", outcome=type(error).__name__, counts=counts)
            raise
        if batch.stage is not None:
            client.run(clear_stage, batch.stage, on_error="ignore")
        ledger.write("batch ends", outcome="done", counts=counts)
    if batch.pages:
        _write_index(entries, batch.output)
    return counts


def forecast(jobs: Sequence[Job], batch: Batch) -> Iterator[Forecast]:
    """Tell what a batch would do, in its order, without doing it.

    Time and memory are estimated by a worker that reads and encodes a part of each image.
    """
    where = replace(batch.where, slurm=None)  # nobody is to wait in a queue for an estimate
    with workers_at(where) as client:
        tasks = _tasks(jobs, replace(batch, where=where), "")
        found = dict(at_each(client, forecast_of, tasks))
    pixels = {n: run.get("pixels", 0.0) for n, run in found.items()}
    for number in sorted(found, key=lambda n: (-pixels[n], tasks[n].job.image)):
        job, run = tasks[number].job, found[number]
        if "error" in run:
            yield Forecast(job.image, str(job.store), error=run["error"])
        else:
            yield Forecast(
                job.image,
                str(job.store),
                run["tokens"],
                run["seconds"],
                run["store_bytes"],
                run["scratch_bytes"],
                run["memory_bytes"],
            )


def _tasks(jobs: Sequence[Job], batch: Batch, name: str) -> list[Task]:
    """Give each job what all of them share."""
    resources = replace(
        batch.resources, max_memory=batch.where.memory_each(batch.resources.max_memory)
    )
    return [
        Task(
            job if batch.where.local else _anywhere(job),
            resources,
            name,
            __version__,
            batch.force,
            batch.command,
            batch.pages,
            batch.stage,
        )
        for job in jobs
    ]


def _anywhere(job: Job) -> Job:
    """Name files so that workers with another working folder find them."""
    files = {
        name: os.path.abspath(value)  # noqa: PTH100 - links stay
        for name in ("model", "encoder", "mask", "aoi")
        if (value := getattr(job.config, name)) is not None and Path(value).is_file()
    }
    image = os.path.abspath(job.image) if Path(job.image).exists() else job.image  # noqa: PTH100
    return Job(image, job.store.absolute(), replace(job.config, **files))


@contextmanager
def _reporting(client: Any, path: Path) -> Iterator[None]:
    """Have Dask write what workers did."""
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        raise GigavimError(
            "--performance-report needs bokeh; pip install 'gigavim[cluster]'"
        ) from error
    from distributed import performance_report

    with client.as_current(), performance_report(filename=str(path)):  # type: ignore[no-untyped-call]
        yield


def _write_index(entries: Sequence[Done], output: Path) -> None:
    """Write a page that leads to those of all images."""
    from gigavim.views.html import write_index

    write_index([_entry(done) for done in entries], output / INDEX)


def _entry(done: Done) -> Any:
    from gigavim.views.html import Entry

    summary = done.summary
    if summary.store is None:
        return Entry(summary.image, summary.status, message=summary.error)
    return Entry.of(summary.store, None if done.page is None else Path(done.page))
