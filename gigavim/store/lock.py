"""One writer for a store, on any disk: an owner with a heartbeat, who is replaced once it is dead.

Locks of the operating system do not reach over every network disk, and exchanging names, as
libraries of file locks do to take over, is refused by NFS and SMB. All that this needs is that a
file can be created by one of many only, which holds everywhere::

    <store>.lock            the owner: host, process and a token, touched every `BEAT_S`
    <store>.lock.<token>    who took over from the owner with that token, and so on

The last one of the chain owns the store. Taking over from a token can succeed once, so that of many
who find an owner dead one succeeds it; and whoever finds itself no longer at the end of the chain
stops. An owner is dead if its process is, where that can be seen from here; elsewhere if it was not
touched for `STALE_S`. Both times are the file server's, so that no clocks are compared.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from gigavim.errors import StoreBusyError

BEAT_S = 30.0
"""Seconds from one sign of life to the next."""
STALE_S = 300.0
"""Seconds without one after which an owner is taken for dead."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has a store, as its lock says."""

    host: str
    pid: int
    born: float
    """When the process was started: numbers of processes come again."""
    token: str
    """Of this lock alone."""

    @classmethod
    def here(cls) -> Self:
        """Describe this process, with a new token."""
        return cls(_host(), os.getpid(), _born(os.getpid()), uuid.uuid4().hex)

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone; False where that cannot be seen from here."""
        if self.host != _host():
            return False
        try:
            return _born(self.pid) != self.born
        except psutil.NoSuchProcess:
            return True


class StoreLock:
    """A store that is ours, for as long as we live and somebody sees it.

    Raises
    ------
    StoreBusyError
        If somebody else has it.
    OSError
        If the file server refuses.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._root = store.with_name(f"{store.name}.lock")
        self._owner = Owner.here()
        self._path = self._claim()
        self._released = threading.Event()
        beat = threading.Thread(target=self._beat, name=f"lock of {store.name}", daemon=True)
        beat.start()

    def check(self) -> None:
        """See that the store is still ours; takes two looks at the disk.

        Raises
        ------
        StoreBusyError
            If we were taken for dead and somebody else has it.
        """
        chain = _chain(self._root)
        if not chain or chain[-1].owner != self._owner:
            now = f"; {_name(chain[-1].owner)} has it now" if chain else ""
            raise StoreBusyError(
                f"{self._store} was taken over after this process gave no sign of life for "
                f"{STALE_S:.0f} s{now}; the same command continues when that run has ended"
            )

    def release(self) -> None:
        """Let others have the store, and leave no file behind."""
        self._released.set()
        with contextlib.suppress(OSError):
            chain = _chain(self._root)
            if chain and chain[-1].owner == self._owner:
                # From the front: the rest hangs on nothing then, and nobody can hang on to it.
                for link in chain:
                    link.path.unlink(missing_ok=True)

    def _claim(self) -> Path:
        """Put ourselves at the end of the chain."""
        while True:
            chain = _chain(self._root)
            if chain and not (_is_dead(chain[-1].owner) or self._is_stale(chain[-1])):
                raise StoreBusyError(
                    f"{self._store} is being written by {_name(chain[-1].owner)}; "
                    "wait for it, or write elsewhere with -o"
                )
            path = self._successor(chain[-1]) if chain else self._root
            try:
                with path.open("x", encoding="utf-8") as file:
                    json.dump(asdict(self._owner), file)
            except FileExistsError:
                continue
            # Whom we succeed may have been succeeded, and all of it released, before we got there.
            now = _chain(self._root)
            if now and now[-1].owner == self._owner:
                return path
            path.unlink(missing_ok=True)

    def _successor(self, link: _Link) -> Path:
        return self._root.with_name(f"{self._root.name}.{link.token}")

    def _is_stale(self, link: _Link) -> bool:
        """Tell whether an owner was not heard of for long, by the clock that stamps its files."""
        probe = self._root.with_name(f"{self._root.name}.{self._owner.token}.now")
        try:
            with probe.open("x") as file:
                now = os.fstat(file.fileno()).st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return now - link.touched > STALE_S

    def _beat(self) -> None:
        """Give signs of life until the store is released or lost."""
        while not self._released.wait(BEAT_S):
            # A server that is away for a moment is no loss; one that is away for long is found by
            # whoever writes next.
            with contextlib.suppress(OSError):
                os.utime(self._path)


@dataclass(frozen=True, slots=True)
class _Link:
    """A file of the chain."""

    path: Path
    owner: Owner | None
    """None where a process ended between making the file and writing it."""
    token: str
    touched: float


def _chain(root: Path) -> list[_Link]:
    """Return who has had the store since it was last free, whoever has it now last."""
    chain: list[_Link] = []
    path = root
    while (link := _read(path)) is not None:
        chain.append(link)
        path = root.with_name(f"{root.name}.{link.token}")
    return chain


def _read(path: Path) -> _Link | None:
    try:
        # Opened rather than asked for: network disks remember what they said of a file for a while.
        with path.open("rb") as file:
            about, text = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return None
    try:
        owner = Owner(**json.loads(text))
    except (ValueError, TypeError):
        return _Link(path, None, f"{about.st_ino:x}-{about.st_mtime_ns:x}", about.st_mtime)
    return _Link(path, owner, owner.token, about.st_mtime)


def _is_dead(owner: Owner | None) -> bool:
    return owner is not None and owner.dead


def _name(owner: Owner | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.pid} on {owner.host.split()[0]}"


def _born(pid: int) -> float:
    """Return when a process was started, by a clock that nobody sets.

    Raises
    ------
    psutil.NoSuchProcess
        If there is none, or it has ended.
    """
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    # Linux counts from boot, proc(5); psutil makes a time of day of it, which moves with the clock.
    with contextlib.suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
        return float(after_name.split()[19])
    return float(process.create_time())


@functools.cache
def _host() -> str:
    """Name what process numbers are good in: containers may share the name of their host."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return socket.gethostname()
