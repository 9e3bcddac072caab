from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gigavim.config import Resources, RunConfig
from gigavim.errors import SourceError, StoreError
from gigavim.pipelines.batches import schedule
from gigavim.pipelines.batches.cluster import Where, workers_at
from gigavim.pipelines.batches.ledger import LEDGER, Ledger
from gigavim.pipelines.batches.manifest import Job
from gigavim.pipelines.batches.schedule import Done, Schedule, at_each
from gigavim.pipelines.batches.staging import StagePlan
from gigavim.pipelines.batches.worker import Outcome, Task, may_pass
from gigavim.pipelines.report import Summary

NAMES = (
    "good", "bad", "flaky", "stubborn", "busy", "kills once", "kills always", "breaks", "last",
)  # fmt: skip


def stand_in() -> Any:
    """Return what does as an image is called; a closure, which workers need not import."""

    def do(task: Task) -> Outcome:
        name = task.job.image
        tries = task.job.store
        with tries.open("a") as file:
            file.write(f"{os.getpid()} {task.upcoming}\n")
        number = len(tries.read_text().splitlines())
        failed = Outcome(Summary(name, "failed", error=f"{name}: fault"), "host", 1, "now", 0.1)
        done = Outcome(Summary(name, "complete"), "host", 1, "now", 0.1)
        if (name == "kills once" and number == 1) or name == "kills always":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "breaks":
            raise RuntimeError("a fault of ours")
        if name == "bad":
            return failed
        if name == "stubborn" or (name == "flaky" and number < 3):
            return Outcome(failed.summary, "host", 1, "now", 0.1, may_pass=True)
        if name == "busy" and number < 5:
            return Outcome(failed.summary, "host", 1, "now", 0.1, busy=True)
        return done

    return do


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with workers_at(Where(workers=2)) as client:
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_S", "BUSY_S", "LOOK_S"):
        monkeypatch.setattr(schedule, name, 0.05)
    monkeypatch.setattr(schedule, "map_image", stand_in())


def tasks(folder: Path, names: tuple[str, ...], stage: StagePlan | None = None) -> list[Task]:
    return [
        Task(Job(name, folder / name, RunConfig()), Resources(), "b", "0", stage=stage)
        for name in names
    ]


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


def test_each_image_gets_what_it_deserves(client: Any, tmp_path: Path) -> None:
    plan = Schedule(client, tasks(tmp_path, NAMES), Ledger(tmp_path, "b"), retries=2)
    done = {NAMES[item.number]: item for item in plan.run()}
    assert set(done) == set(NAMES)
    found = {name: (item.summary.status, item.attempts) for name, item in done.items()}
    assert found == {
        "good": ("complete", 1),
        "bad": ("failed", 1),
        "flaky": ("complete", 3),
        "stubborn": ("failed", 3),
        "busy": ("complete", 5),
        "kills once": ("complete", 2),
        "kills always": ("failed", 3),
        "breaks": ("failed", 1),
        "last": ("complete", 1),
    }
    assert "ended 3 workers, most likely for want of memory" in (
        done["kills always"].summary.error or ""
    )
    assert done["breaks"].summary.error == "breaks: RuntimeError: a fault of ours"
    outcomes: dict[str, list[str]] = {}
    for line in ledger_of(tmp_path):
        if line["event"] == "left":
            outcomes.setdefault(line["image"], []).append(line["outcome"])
    assert outcomes["flaky"] == ["again", "again", "complete"]
    assert outcomes["kills once"] == ["lost", "complete"]
    assert outcomes["kills always"] == ["lost"] * 3
    begun = [line["image"] for line in ledger_of(tmp_path) if line["event"] == "begun"]
    assert len(begun) == sum(item.attempts for item in done.values())
    # In the order that was asked for, as far as workers were free.
    assert set(begun[:2]) == {"good", "bad"}


def test_a_worker_is_told_what_comes_next_and_gets_it(client: Any, tmp_path: Path) -> None:
    names = tuple(f"image {number}" for number in range(8))
    plan = Schedule(
        client, tasks(tmp_path, names, StagePlan(tmp_path)), Ledger(tmp_path, "b"), retries=0
    )
    done: list[Done] = list(plan.run())
    assert len(done) == len(names)
    said = {name: (tmp_path / name).read_text().strip().split(" ", 1) for name in names}
    kept = [name for name, (_, upcoming) in said.items() if upcoming != "None"]
    # At the end of the list, another worker that is idle may take it.
    same = [said[name][0] == said[said[name][1]][0] for name in kept]
    assert len(kept) >= 4
    assert sum(same) >= len(same) - 1


def test_little_is_in_flight_however_long_the_list(client: Any, tmp_path: Path) -> None:
    names = tuple(f"image {number}" for number in range(60))
    plan = Schedule(client, tasks(tmp_path, names), Ledger(tmp_path, "b"), retries=0)
    most = 0
    for _ in plan.run():
        most = max(most, len(client.futures))
    assert most <= 3
    results = dict(at_each(client, lambda task: task.job.image, tasks(tmp_path, names)))
    assert [results[number] for number in range(60)] == list(names)
    assert len(client.futures) <= 1


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOSPC, True), (errno.ENOENT, False),
     (errno.EACCES, False), (None, False)],
)  # fmt: skip
def test_what_may_pass_is_told_by_its_cause(number: int | None, passes: bool) -> None:
    error: Exception = SourceError("slide.svs is no image")
    if number is not None:
        error = StoreError("cannot write")
        error.__cause__ = ValueError("in between")
        error.__cause__.__cause__ = OSError(number, os.strerror(number))
    assert may_pass(error) == passes
