"""A run may be killed between any two writes, and the next one makes good."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gigavim.errors import StoreError
from gigavim.geometry import Level, Spacing, Window
from gigavim.georeference import Registration
from gigavim.sources.source import ReadError
from gigavim.store import ResultStore

BLOCKS = 2
REGISTRATION = Registration(16.0, 16.0, Spacing(0.5, 0.5, "µm", "test"))
UNREADABLE = ReadError(1, Window(2, 3, 4, 5), "tile 7 cannot be decoded")


def attributes(spacing: float = 2.0) -> dict[str, Any]:
    return {
        "version": "0.1",
        "command": "gigavim run slide.svs",
        "configuration": {"spacing": spacing, "bands": ["red", "green"]},
        "model": {"id": "tiny", "weights_sha256": "abc"},
        "source": {"uri": "/data/slide.svs", "size": 12, "fingerprint": "def"},
        "spacing": {"requested": spacing, "achieved": [spacing, spacing], "origin": "aperio.MPP"},
    }


def tokens_of(block: int) -> np.ndarray:
    """Four tokens, different in each block."""
    return np.arange(12, dtype=np.float32).reshape(4, 3) + 100 * block


def run(path: Path, spacing: float = 2.0, *, force: bool = False) -> int:
    """Do what a run does, and return how many blocks it had to make."""
    made = 0
    with ResultStore.create(path, attributes(spacing), force=force) as store:
        if store.complete:
            return made
        for block in range(BLOCKS):
            if not store.block_done(block):
                made += 1
                valid = np.array([True, True, True, block > 0])
                store.write_block(block, tokens_of(block), valid, [UNREADABLE])
        held = [store.read_block(block) for block in range(BLOCKS)]
        store.write_rows("tokens/features", [h.tokens for h in held], (8, 3), np.float16)
        store.write_array("tokens/valid", np.concatenate([h.valid for h in held]).astype(np.uint8))
        store.describe("tokens", order="raster")
        store.write_errors(
            [e for h in held for e in h.errors], [Level(9, 9, 1, 1), Level(3, 3, 4, 4)]
        )
        labels = np.full((3, 4), int(spacing), np.uint8)
        store.write_label_map("map", labels, ("a", "b", "c"), ((1, 2, 3),) * 3, REGISTRATION)
        store.finish(seconds=1.5)
    return made


def has_all(path: Path, spacing: float = 2.0) -> bool:
    """Tell whether every result of `run` is there and right."""
    store = ResultStore.open(path)
    expected = np.concatenate([tokens_of(block) for block in range(BLOCKS)])
    return (
        store.complete
        and np.array_equal(store.values("tokens/features"), expected)
        and store.values("tokens/valid").tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
        and store.values("errors/x").tolist() == [12]
        and store.values("errors/message").tolist() == [UNREADABLE.message]
        and bool((store.values("labels/map/0") == spacing).all())
        and not (path / "state").exists()
    )


def _kill_at(event_number: int, changes: set[str]) -> None:
    """End this process, as a kill would, right before one of its changes to the file system."""
    events = itertools.count(1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in changes and next(events) == event_number:
            os._exit(9)

    sys.addaudithook(hook)


def kill_everywhere(folder: Path, *, force: bool) -> None:
    """Run once for each change that a run makes, and be killed before it; a store for each.

    With ``force`` only what it removes counts, since what it writes it writes as without.
    """
    # Files are written under another name and renamed, so nothing else changes what is there.
    changes = {"os.remove", "os.rmdir"} if force else {"os.remove", "os.rmdir", "os.rename"}
    for number in itertools.count(1):
        path = folder / f"{number}.gigavim.zarr"
        if force:
            shutil.copytree(folder / "old", path)
        child = os.fork()
        if child == 0:
            _kill_at(number, changes)
            run(path, force=force)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 9:
            return


def killed_runs(folder: Path, how: str) -> list[Path]:
    """Return the stores that `kill_everywhere` leaves, by the time of the kill, the last whole."""
    # A fresh process, since a fork of this one would inherit the threads of other tests.
    subprocess.run([sys.executable, __file__, str(folder), how], check=True, timeout=300)
    stores = folder.glob("*.gigavim.zarr")
    return sorted(stores, key=lambda path: int(path.name.split(".")[0]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
def test_a_run_killed_anywhere_never_looks_finished_and_is_taken_up(tmp_path: Path) -> None:
    stores = killed_runs(tmp_path, "fresh")
    assert len(stores) > 30
    assert has_all(stores[-1])
    made_again = []
    for path in stores[:-1]:
        assert not ResultStore.is_finished(path, attributes()) or has_all(path)
        made_again.append(run(path))
        assert has_all(path)
    assert made_again == sorted(made_again, reverse=True)
    assert set(made_again) == set(range(BLOCKS + 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
def test_starting_over_may_be_killed_anywhere(tmp_path: Path) -> None:
    run(tmp_path / "old", spacing=1.0)
    stores = killed_runs(tmp_path, "force")
    assert has_all(stores[-1])
    for path in stores[:-1]:
        for spacing in (1.0, 2.0):
            try:
                finished = ResultStore.is_finished(path, attributes(spacing))
            except StoreError:
                continue
            assert not finished or has_all(path, spacing)
        run(path, force=True)
        assert has_all(path)


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), force=sys.argv[2] == "force")
