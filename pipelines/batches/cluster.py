"""Who does the work: processes of this machine, its GPUs, a running cluster, or one by SLURM.

A worker has one image at a time, whatever number of threads it has: they are the cores that it may
use for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gigavim.errors import GigavimError
from gigavim.pipelines.memory import FREE_SHARE
from gigavim.pipelines.share import PATIENCE_S, check_versions
from gigavim.pipelines.stream import silence_dask

LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Told to workers here: a terminal sends it to them too, and this process ends them in order."""
START_S = 300
"""Seconds that workers of this machine have to start."""


@dataclass(frozen=True, slots=True)
class Where:
    """Whom to have do the work; one process of this machine if nothing is said."""

    workers: int | None = None
    """Processes of this machine; jobs, where a cluster is asked for them."""
    gpus: tuple[str, ...] = ()
    """GPUs of this machine, a process for each."""
    scheduler: str | None = None
    """Address of a running scheduler."""
    scheduler_file: Path | None = None
    """A file in which one has written its address."""
    slurm: Path | None = None
    """A YAML file of what `dask_jobqueue.SLURMCluster` takes, and ``jobs``, how many to submit."""

    @property
    def local(self) -> bool:
        """Whether workers are started on this machine."""
        return self.scheduler is None and self.scheduler_file is None and self.slurm is None

    @property
    def count(self) -> int:
        """How many workers are started on this machine."""
        return len(self.gpus) or self.workers or 1

    def memory_each(self, limit: int | None) -> int | None:
        """Return what a worker may take of ``limit``; elsewhere a limit is that of each worker."""
        if not self.local:
            return limit
        total = limit or int(FREE_SHARE * psutil.virtual_memory().available)
        return total // self.count


@contextmanager
def workers_at(where: Where) -> Iterator[Any]:
    """Start workers or find them; they end with the body, except those of a running scheduler.

    Yields
    ------
    client
        A `distributed.Client`. Jobs of SLURM may still wait in the queue.

    Raises
    ------
    GigavimError
        If there is no scheduler, it has no workers, these have another version, or what a cluster
        needs is not installed.
    """
    import dask
    from distributed import Client

    silence_dask()
    with ExitStack() as stack:
        # The run of an image is minutes without a word to Dask.
        stack.enter_context(dask.config.set({"distributed.admin.tick.limit": "1h"}))
        if where.slurm is not None:
            address: Any = stack.enter_context(_slurm(where.slurm, where.workers))
        elif where.local:
            address = stack.enter_context(_local(where))
        else:
            address = where.scheduler or _address_in(where.scheduler_file)
        name = where.scheduler or where.scheduler_file or "this machine"
        try:
            client = stack.enter_context(
                Client(address, timeout=PATIENCE_S, set_as_default=False)  # type: ignore[no-untyped-call]
            )
            if where.slurm is None:
                client.wait_for_workers(1, timeout=START_S if where.local else PATIENCE_S)
        # Another kind of server answers with bytes that Dask takes for an enormous length.
        except (OSError, ValueError, MemoryError) as error:
            fault = (str(error).splitlines() or [type(error).__name__])[0].lower()
            raise GigavimError(
                f"no Dask workers at {name}: {fault}; start them with `dask scheduler` and "
                "`dask worker`, or use --workers N on this machine"
            ) from error
        if where.slurm is None:
            check_versions(client)
        yield client


def _address_in(file: Path | None) -> str:
    """Return the address that a scheduler wrote; Dask itself would wait for the file for ever."""
    assert file is not None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GigavimError(
            f"no Dask workers at {file}: it cannot be read, or has no address; start them with "
            "`dask scheduler --scheduler-file` and `dask worker --scheduler-file`"
        ) from error


@contextmanager
def _local(where: Where) -> Iterator[Any]:
    """Start processes on this machine, which share its cores."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    cores = max(1, (os.cpu_count() or 1) // where.count)
    if where.gpus and importlib.util.find_spec("dask_cuda"):
        from dask_cuda import LocalCUDACluster

        with LocalCUDACluster(
            CUDA_VISIBLE_DEVICES=list(where.gpus),
            threads_per_worker=cores,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
        ) as cluster:
            yield cluster
        return
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment["DASK_LOGGING__DISTRIBUTED"] = "critical"
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        # It would keep where threads were in each second of the last hour: half a gigabyte.
        "distributed.worker.profile.enabled": False,
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": cores,
                "memory_limit": 0,  # each run keeps to its own
                "host": "127.0.0.1",
                "preload": [LEAVE_CTRL_C],
                # To be known before CUDA starts.
                "env": {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {},
            },
        }
        for number, gpu in enumerate(where.gpus or [""] * where.count)
    }
    scheduler = {
        "cls": Scheduler,
        # The scheduler insists on a port; a free one lets many batches live side by side.
        "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }
    with (
        _environment_kept(),
        dask.config.set(settings),
        SpecCluster(workers=workers, scheduler=scheduler) as cluster,  # type: ignore[no-untyped-call]
    ):
        yield cluster


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Take back what Dask's nannies set in this process, when all they mean is their workers."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - before:  # what was there, they leave
            del os.environ[name]


@contextmanager
def _slurm(config: Path, jobs: int | None) -> Iterator[Any]:
    """Submit jobs to SLURM, each of which starts workers; print their script first."""
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise GigavimError(
            "--cluster slurm needs dask-jobqueue; pip install 'gigavim[cluster]'"
        ) from error
    settings = dict(read_settings(config))
    jobs = jobs or int(settings.pop("jobs", 1))
    settings.pop("jobs", None)
    try:
        cluster: Any = SLURMCluster(**settings)
    except (TypeError, ValueError) as error:
        raise GigavimError(f"{config}: {error}; see the names in docs/batch.md") from error
    with cluster:
        print(cluster.job_script(), file=sys.stderr)
        cluster.scale(jobs=jobs)
        yield cluster


def read_settings(path: Path) -> Mapping[str, Any]:
    """Read the settings of a cluster.

    Raises
    ------
    GigavimError
        If there are none, or they name threads twice.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fault = " ".join(str(error).split())
        raise GigavimError(f"{path} cannot be read: {fault}; it is to be YAML") from error
    if not isinstance(settings, dict):
        raise GigavimError(f"{path} has no settings; write lines such as `cores: 8`")
    for argument in settings.get("worker_extra_args") or ():
        if "nthreads" in str(argument) or "nworkers" in str(argument):
            raise GigavimError(
                f"{path}: {argument} in worker_extra_args comes after the same of dask-jobqueue; "
                "set cores and processes instead"
            )
    return settings
