from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.pipelines import share
from gigavim.pipelines.batches import cluster, schedule
from gigavim.pipelines.batches.cluster import Where, workers_at
from gigavim.pipelines.batches.ledger import Ledger
from gigavim.pipelines.batches.manifest import Job
from gigavim.pipelines.batches.schedule import Schedule
from gigavim.pipelines.batches.worker import Task


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A cluster of one worker that was started by hand: its scheduler file, and its scheduler."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--scheduler-file", str(file), "--port", "0", "--no-dashboard",
         "--host", "127.0.0.1"], **quiet,
    )  # fmt: skip
    worker = subprocess.Popen(
        [*dask, "worker", "--scheduler-file", str(file), "--nthreads", "3", "--no-nanny",
         "--no-dashboard"], **quiet,
    )  # fmt: skip
    try:
        while not file.exists():
            assert scheduler.poll() is None
        yield file, scheduler
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait()


def environment(client: Any, *names: str) -> list[tuple[str | None, ...]]:
    found = client.run(lambda: tuple(os.environ.get(name) for name in names))
    return sorted(found.values())


def test_workers_share_the_cores_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    # As if it were not installed: it needs GPUs to start.
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with workers_at(Where(gpus=("2", "0"))) as client:
        assert environment(client, "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS") == [
            ("0", "3"), ("2", "3"),
        ]  # fmt: skip
        assert set(client.nthreads().values()) == {3}
        # A terminal's goes to all of its processes, and one of them is to say so.
        interrupts = client.run(lambda: signal.getsignal(signal.SIGINT))
        assert set(interrupts.values()) == {signal.SIG_IGN}
        profiled = client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
        assert not any(profiled.values())
    assert "OMP_NUM_THREADS" not in os.environ


def test_workers_of_a_running_cluster_are_found_and_stay(
    running: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = running
    monkeypatch.setattr(cluster, "PATIENCE_S", 60)
    with workers_at(Where(scheduler_file=file)) as client:
        assert list(client.nthreads().values()) == [3]
    address = json.loads(file.read_text())["address"]
    with workers_at(Where(scheduler=address)) as client:
        assert len(client.nthreads()) == 1
    monkeypatch.setattr(share, "__version__", "99.0")
    with (
        pytest.raises(GigavimError, match=r"has GigaVim .*, this is 99\.0; install the same"),
        workers_at(Where(scheduler=address)),
    ):
        pass


def test_a_scheduler_that_is_killed_is_said(
    running: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, scheduler = running
    monkeypatch.setattr(cluster, "PATIENCE_S", 60)
    monkeypatch.setattr(schedule, "map_image", lambda task: time.sleep(6))
    task = Task(Job("a.svs", tmp_path / "a", RunConfig()), Resources(), "b", "0")
    ledger = Ledger(tmp_path, "b")

    def run() -> None:
        with workers_at(Where(scheduler_file=file)) as client:
            threading.Timer(2, scheduler.kill).start()
            list(Schedule(client, [task], ledger, retries=0).run())

    with pytest.raises(GigavimError, match="the scheduler was lost; the same command continues"):
        run()


def test_a_scheduler_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.5)
    missing = tmp_path / "scheduler.json"
    for where in (Where(scheduler="tcp://127.0.0.1:1"), Where(scheduler_file=missing)):
        with (
            pytest.raises(GigavimError, match=r"no Dask workers at .*; start them"),
            workers_at(where),
        ):
            pass


def test_a_limit_of_memory_is_shared_on_this_machine_and_each_workers_elsewhere() -> None:
    assert Where(workers=4).memory_each(8_000) == 2_000
    assert Where(gpus=("0", "1")).memory_each(8_000) == 4_000
    assert Where(workers=4, scheduler="tcp://host:8786").memory_each(8_000) == 8_000
    free = Where().memory_each(None)
    assert free is not None
    assert abs(Where(workers=2).memory_each(None) or 0) < free
    assert Where(scheduler="tcp://host:8786").memory_each(None) is None
