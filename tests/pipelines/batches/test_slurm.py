"""A real SLURM of one node, started for this test: `apt-get install slurmctld slurmd munge`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

import images
from gigavim.cli import app
from gigavim.errors import GigavimError
from gigavim.pipelines.batches.cluster import read_settings

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
CONFIG = """
ClusterName=gigavim
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start a controller and a node; return a folder of theirs."""
    pytest.importorskip("dask_jobqueue")
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in DAEMONS if not shutil.which(name, path=path)]
    if missing or os.geteuid():
        pytest.skip(f"needs root and SLURM on this machine; not there: {', '.join(missing)}")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller=free_port(),
            daemon=free_port(),
            cores=os.cpu_count(),
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(config))
    monkeypatch.setenv("PATH", path)
    munge = [
        "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
        f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log",
    ]  # fmt: skip
    with ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while command is munge and not (folder / "munge.socket").exists():
                assert process.poll() is None, (folder / "munged.log").read_text()
                time.sleep(0.05)
        until = time.monotonic() + 60
        while "idle" not in run("sinfo", "-h", "-o", "%t"):
            logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.log")}
            assert time.monotonic() < until, logs
            time.sleep(0.5)
        yield folder
        run("scancel", "--user=root")
        while run("squeue", "-h"):
            time.sleep(0.5)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_workers_are_started_by_slurm(slurm: Path, model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(3):
        images.write_slide(slides / f"{number}.svs", images.tissue(512, 512, number))
    settings = tmp_path / "slurm.yaml"
    settings.write_text(
        f"queue: main\ncores: 1\nprocesses: 1\nmemory: 4GB\nwalltime: '00:20:00'\njobs: 2\n"
        f"interface: lo\npython: {sys.executable}\nlog_directory: {slurm}\n"
        f"local_directory: {slurm}\njob_directives_skip: ['--mem']\n"
    )
    command = [
        "batch", str(slides), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu",
        "--cluster", "slurm", "--cluster-config", str(settings),
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    logs = "".join(path.read_text()[-3000:] for path in slurm.glob("*.err"))
    assert result.exit_code == 0, result.output + logs
    assert "#SBATCH -p main" in result.stderr
    assert result.stderr.count("--nthreads") == 1
    assert "3 images: 3 complete" in result.stdout
    assert len(list((tmp_path / "out").glob("*.gigavim.zarr"))) == 3
    assert len(list(slurm.glob("*.err"))) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker_extra_args: ['--nthreads 4']", "--nthreads 4 in worker_extra_args .* cores and"),
        ("- cores", "has no settings"),
        ("cores: [", "cannot be read: .* it is to be YAML"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(GigavimError, match=f"slurm.yaml.* {said}") as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)
