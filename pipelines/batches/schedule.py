"""An image to each worker, in the order given, until all are done.

What is in flight is one task a worker, however long the list is. Each is bound to its worker: when
that is lost, its image goes to the next free one, which takes up what is stored, and an image that
has ended `LOSSES` workers is given up. A failure that may pass is tried again later, some times; a
store that another run has is waited for, as long as that run may turn out to be dead.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

from gigavim.errors import GigavimError
from gigavim.pipelines.batches.ledger import Ledger
from gigavim.pipelines.batches.worker import Outcome, Task, map_image
from gigavim.pipelines.report import Summary
from gigavim.store.lock import STALE_S

logger = logging.getLogger(__name__)

LOSSES = 3
"""Workers that may be lost with an image before it is given up."""
RETRY_S = 5.0
"""Seconds before the first retry; each later one takes twice as long."""
BUSY_S = 30.0
"""Seconds from one look at a store that another run has to the next."""
PATIENCE_S = STALE_S + 60
"""Seconds after which a store that another run has is given up: that run is alive."""
LOOK_S = 1.0
"""Seconds from one look for lost and new workers to the next."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an image."""

    number: int
    """Of its task."""
    summary: Summary
    attempts: int
    host: str | None = None
    page: str | None = None


@dataclass(slots=True)
class _Image:
    """How far an image is."""

    number: int
    task: Task
    attempts: int = 0
    losses: int = 0
    failures: int = 0
    waiting_since: float | None = None
    """Since when another run has its store."""


@dataclass(slots=True)
class _Flight:
    """An image at a worker."""

    image: _Image
    future: Any
    worker: str
    began: float
    upcoming: _Image | None
    """What the worker copies meanwhile."""


def at_each(
    client: Any, work: Callable[[Task], Any], tasks: Sequence[Task]
) -> Iterator[tuple[int, Any]]:
    """Do something short for each image, at any worker; yield numbers and results as they come.

    Raises
    ------
    GigavimError
        If the scheduler is lost, or one image ends several workers.
    """
    from distributed import KilledWorker

    left = iter(enumerate(tasks))
    flying: dict[int, Any] = {}
    something_ended = threading.Event()
    while True:
        room = 2 * max(1, len(client.nthreads())) - len(flying)
        for number, task in itertools.islice(left, max(0, room)):
            flying[number] = client.submit(work, task, pure=False)
            flying[number].add_done_callback(lambda future: something_ended.set())
        if not flying:
            return
        something_ended.wait(LOOK_S)
        something_ended.clear()
        for number in [n for n, future in flying.items() if future.status != "pending"]:
            try:
                yield number, flying.pop(number).result()
            except (KilledWorker, CancelledError) as error:
                raise GigavimError(
                    f"workers were lost while {tasks[number].job.image} was looked at; "
                    "give them more memory, or leave it out"
                ) from error


class Schedule:
    """The images of a batch and the workers that have them.

    Parameters
    ----------
    client
        A `distributed.Client`.
    tasks
        In the order in which they are to be begun.
    retries
        How often an image is tried again after a failure that may pass.
    """

    def __init__(self, client: Any, tasks: Sequence[Task], ledger: Ledger, retries: int) -> None:
        self._client, self._ledger, self._retries = client, ledger, retries
        self._todo = deque(_Image(number, task) for number, task in enumerate(tasks))
        self._later: list[tuple[float, int, _Image]] = []
        self._flying: dict[str, _Flight] = {}
        """By the key of the future."""
        self._something_ended = threading.Event()

    def run(self) -> Iterator[Done]:
        """Do all images; yield each as it is done.

        Raises
        ------
        GigavimError
            If the scheduler is lost.
        """
        asked = time.monotonic()
        while self._todo or self._later or self._flying:
            workers = self._workers()
            if workers:
                asked = time.monotonic()
            elif time.monotonic() - asked > 60:
                asked = time.monotonic()
                logger.warning("there are no workers; waiting for some")
            yield from self._look_for_losses(workers)
            self._launch(workers)
            # Dask's threads may be late with the word, or fail to give it; the futures know.
            self._something_ended.wait(LOOK_S)
            self._something_ended.clear()
            ended = [key for key, f in self._flying.items() if f.future.status != "pending"]
            for key in ended:
                yield from self._land(self._flying.pop(key))

    def stop(self) -> None:
        """Give up what is in flight, and write so."""
        for flight in self._flying.values():
            self._left(flight, "interrupted")
        self._client.cancel([flight.future for flight in self._flying.values()])

    def _workers(self) -> set[str]:
        if self._client.status != "running":
            raise self._lost()
        try:
            return set(self._client.nthreads())
        except (OSError, TimeoutError, CancelledError) as error:
            raise self._lost() from error

    def _lost(self) -> GigavimError:
        return GigavimError("the scheduler was lost; the same command continues where it stopped")

    def _launch(self, workers: set[str]) -> None:
        """Give every free worker an image."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._todo.appendleft(heapq.heappop(self._later)[2])
        free = sorted(workers - {flight.worker for flight in self._flying.values()})
        # All of them before any is told what it will have next.
        given = [(image, worker) for worker in free if (image := self._next())]
        for image, worker in given:
            self._begin(image, worker)

    def _next(self) -> _Image | None:
        """Return the next image, if need be one that another worker has copied in vain."""
        if self._todo:
            return self._todo.popleft()
        for flight in self._flying.values():
            if flight.upcoming is not None:
                image, flight.upcoming = flight.upcoming, None
                return image
        return None

    def _begin(self, image: _Image, worker: str) -> None:
        task = image.task
        upcoming = self._todo.popleft() if task.stage is not None and self._todo else None
        if upcoming is not None:
            task = replace(task, upcoming=upcoming.task.job.image)
        image.attempts += 1
        # Dask would give it to any worker when this is lost, without a word to us.
        future = self._client.submit(
            map_image, task, workers=[worker], allow_other_workers=False, pure=False, retries=0
        )
        self._flying[future.key] = _Flight(image, future, worker, time.monotonic(), upcoming)
        self._ledger.write("begun", image=task.job.image, attempt=image.attempts, worker=worker)
        future.add_done_callback(lambda future: self._something_ended.set())

    def _look_for_losses(self, workers: set[str]) -> Iterator[Done]:
        """Take images back from workers that are gone."""
        gone = [key for key, f in self._flying.items() if f.worker not in workers]
        for key in gone:
            flight = self._flying.pop(key)
            if flight.future.status == "finished":
                self._flying[key] = flight  # and reported all the same
                continue
            flight.future.release()
            yield from self._lose(flight)

    def _lose(self, flight: _Flight) -> Iterator[Done]:
        image = flight.image
        image.losses += 1
        self._left(flight, "lost", error=f"the worker {flight.worker} was lost")
        self._give_back(flight)
        if image.losses < LOSSES:
            self._todo.appendleft(image)
            return
        error = (
            f"{image.task.job.image} has ended {image.losses} workers, most likely for want of "
            "memory; give it a smaller --max-memory, or fewer workers"
        )
        yield Done(
            image.number, Summary(image.task.job.image, "failed", error=error), image.attempts
        )

    def _land(self, flight: _Flight) -> Iterator[Done]:
        """See what became of an image."""
        image, future = flight.image, flight.future
        status = future.status
        if status == "error":
            error = future.exception()
            outcome = None
        elif status == "finished":
            try:
                outcome = future.result(timeout=LOOK_S * 30)
            except (OSError, TimeoutError, CancelledError):
                outcome = None
                status = "cancelled"
        future.release()
        if status in ("cancelled", "lost", "pending"):
            self._workers()  # is the scheduler there?
            yield from self._lose(flight)
            return
        if outcome is None:
            # A fault of ours, or of a library: said, and no other image pays for it.
            text = f"{image.task.job.image}: {type(error).__name__}: {error}"
            self._left(flight, "failed", error=text)
            yield Done(
                image.number, Summary(image.task.job.image, "failed", error=text), image.attempts
            )
        elif not self._again(flight, outcome):
            self._left(flight, outcome.summary.status, outcome)
            yield Done(image.number, outcome.summary, image.attempts, outcome.host, outcome.page)
        self._give_back(flight, to=flight.worker)

    def _again(self, flight: _Flight, outcome: Outcome) -> bool:
        """Put an image back, if it may succeed later."""
        image, now = flight.image, time.monotonic()
        if outcome.busy:
            since = image.waiting_since = image.waiting_since or now
            if now - since > PATIENCE_S:
                return False
            wait = BUSY_S
        elif outcome.may_pass and image.failures < self._retries:
            wait = RETRY_S * 2**image.failures
            image.failures += 1
        else:
            return False
        self._left(flight, "again", outcome)
        heapq.heappush(self._later, (now + wait, image.number, image))
        return True

    def _give_back(self, flight: _Flight, to: str | None = None) -> None:
        """Put what the worker has copied first in the list; it is free to take it."""
        if flight.upcoming is None:
            return
        upcoming, flight.upcoming = flight.upcoming, None
        if to is None:
            self._todo.appendleft(upcoming)
        else:
            self._begin(upcoming, to)

    def _left(
        self, flight: _Flight, result: str, outcome: Outcome | None = None, error: str | None = None
    ) -> None:
        image = flight.image
        facts: dict[str, Any] = {
            "image": image.task.job.image,
            "store": str(image.task.job.store),
            "attempt": image.attempts,
            "outcome": result,
            "worker": flight.worker,
            "seconds": round(time.monotonic() - flight.began, 3),
            "error": error,
        }
        if outcome is not None:
            facts |= {
                "host": outcome.host,
                "pid": outcome.pid,
                "begun": outcome.begun,
                "seconds": round(outcome.seconds, 3),
                "error": outcome.summary.error,
            }
        self._ledger.write("left", **facts)
