from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gigavim.errors import StoreBusyError
from gigavim.store import ResultStore, lock
from gigavim.store.lock import STALE_S, Owner, StoreLock

ATTRIBUTES = {"configuration": {}, "model": {}, "source": {}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "slide.gigavim.zarr"


def age(path: Path, seconds: float) -> None:
    """Let a file look as if nobody had touched it for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(store: Path, seconds: float) -> Owner:
    """Leave the lock of another machine, last touched so long ago."""
    owner = dataclasses.replace(Owner.here(), host="node7 1")
    path = store.with_name(f"{store.name}.lock")
    path.write_text(json.dumps(dataclasses.asdict(owner)))
    age(path, seconds)
    return owner


def files(store: Path) -> list[str]:
    return sorted(path.name for path in store.parent.iterdir())


def test_who_has_a_store_is_named(store: Path) -> None:
    held = StoreLock(store)
    with pytest.raises(StoreBusyError, match=f"written by process {os.getpid()} on"):
        StoreLock(store)
    held.release()
    assert files(store) == []
    StoreLock(store).release()


def test_an_owner_elsewhere_is_believed_until_it_is_silent_for_long(store: Path) -> None:
    elsewhere(store, STALE_S / 2)
    with pytest.raises(StoreBusyError, match="on node7; wait for it"):
        StoreLock(store)
    elsewhere(store, STALE_S * 2)
    StoreLock(store).release()
    assert files(store) == []


def test_a_process_number_that_came_again_is_not_the_owner(store: Path) -> None:
    owner = dataclasses.replace(Owner.here(), born=1.0)
    store.with_name(f"{store.name}.lock").write_text(json.dumps(dataclasses.asdict(owner)))
    StoreLock(store).release()


def test_a_lock_that_was_never_written_is_left_to_go_stale(store: Path) -> None:
    path = store.with_name(f"{store.name}.lock")
    path.touch()
    with pytest.raises(StoreBusyError, match="another process"):
        StoreLock(store)
    age(path, STALE_S * 2)
    held = StoreLock(store)
    held.check()
    held.release()
    assert files(store) == []


def test_signs_of_life_keep_a_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    held = StoreLock(store)
    path = store.with_name(f"{store.name}.lock")
    age(path, STALE_S * 2)
    while time.time() - path.stat().st_mtime > STALE_S:
        time.sleep(0.01)
    with pytest.raises(StoreBusyError):
        StoreLock(store)
    held.release()


def test_who_was_taken_for_dead_stops_before_it_writes(store: Path) -> None:
    first = ResultStore.create(store, ATTRIBUTES)
    age(store.with_name(f"{store.name}.lock"), STALE_S * 2)
    with ResultStore.create(store, ATTRIBUTES) as second:
        with pytest.raises(StoreBusyError, match=r"was taken over after .* 300 s; process \d+ on"):
            first.write_block(0, np.ones((2, 3), np.float32), np.ones(2, np.bool_))
        assert not second.block_done(0)
        # Nor does it take the lock of the other with it.
        first.close()
        second.write_block(0, np.ones((2, 3), np.float32), np.ones(2, np.bool_))
        with pytest.raises(StoreBusyError):
            StoreLock(store)
    assert files(store) == [store.name]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(("take", "silence", "release")), st.integers(0, 3))))
def test_whatever_happens_one_at_most_has_the_store(events: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        store = Path(folder) / "slide.gigavim.zarr"
        locks: dict[int, StoreLock] = {}
        owner: int | None = None
        silent = False
        for event, who in events:
            if event == "take" and who not in locks:
                try:
                    locks[who] = StoreLock(store)
                except StoreBusyError:
                    assert owner is not None
                    assert not silent
                else:
                    assert owner is None or silent
                    owner, silent = who, False
            elif event == "silence" and owner is not None:
                for path in Path(folder).iterdir():
                    age(path, STALE_S * 2)
                silent = True
            elif event == "release" and who in locks:
                locks.pop(who).release()
                owner = None if who == owner else owner
            assert [who for who in locks if has(locks[who])] == [owner] * (owner is not None)
        for held in locks.values():
            held.release()
        if owner is not None:
            assert list(Path(folder).iterdir()) == []


def has(held: StoreLock) -> bool:
    try:
        held.check()
    except StoreBusyError:
        return False
    return True


RACE = """
import os, sys, time
from pathlib import Path
from gigavim.errors import StoreBusyError
from gigavim.store.lock import StoreLock
store, inside, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
got = 0
for _ in range(rounds):
    try:
        lock = StoreLock(store)
    except StoreBusyError:
        continue
    # Fails if somebody else is inside.
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    lock.check()
    inside.unlink()
    got += 1
    if rounds > 1:
        lock.release()
print(got, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def racers(store: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that wait for a line to begin, and for another to end."""
    folder = store.parent / "race"
    folder.mkdir()
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.communicate("\n", timeout=120)
        assert process.returncode == 0


def race(
    processes: list[subprocess.Popen[str]], store: Path, rounds: int, count: int = 3
) -> list[int]:
    """Have processes begin at once; return how often each had the store."""
    command = [sys.executable, "-c", RACE, str(store), str(store.parent / "race" / "in")]
    processes += [
        subprocess.Popen(
            [*command, str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    lines = [(p.stdin, p.stdout) for p in processes if p.stdin and p.stdout]
    for _, out in lines:
        assert out.readline() == "ready\n"
    for into, _ in lines:
        threading.Thread(target=lambda into=into: (into.write("\n"), into.flush())).start()
    return [int(out.readline()) for _, out in lines]


def test_processes_never_meet_inside(racers: list[subprocess.Popen[str]], store: Path) -> None:
    assert sum(race(racers, store, 200)) > 0


def test_one_of_many_takes_over_from_the_dead(
    racers: list[subprocess.Popen[str]], store: Path
) -> None:
    elsewhere(store, STALE_S * 2)
    assert sorted(race(racers, store, 1)) == [0, 0, 1]
