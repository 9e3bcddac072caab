"""Tiles that threads read ahead of being shown, and a cache of them."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any, Protocol

from numpy.typing import NDArray

CACHE_BYTES = 512 << 20
"""Tiles of all images together that are kept: some ten views of a large screen."""

Key = tuple[int, int, int]
"""Level of a tile, its row and its column."""


class Owner(Protocol):
    """What tiles belong to."""

    def load(self, key: Key) -> Any:
        """Read a tile, and keep it."""
        ...


_Wanted = tuple["weakref.ref[Owner]", Key]


class TileCache:
    """The tiles that were used last, within a number of bytes; for any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._bytes = capacity, 0
        self._tiles: OrderedDict[tuple[int, Key], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, owner: int, key: Key) -> NDArray[Any] | None:
        """Return a tile, None if it is not here."""
        with self._lock:
            tile = self._tiles.get((owner, key))
            if tile is not None:
                self._tiles.move_to_end((owner, key))
            return tile

    def put(self, owner: int, key: Key, tile: NDArray[Any]) -> None:
        """Keep a tile, in the place of those that were not used for longest."""
        with self._lock:
            before = self._tiles.pop((owner, key), None)
            self._bytes += tile.nbytes - (0 if before is None else before.nbytes)
            self._tiles[owner, key] = tile
            while self._bytes > self._capacity:
                _, oldest = self._tiles.popitem(last=False)
                self._bytes -= oldest.nbytes

    def drop(self, owner: int) -> None:
        """Forget what belongs to an owner."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] == owner]:
                self._bytes -= self._tiles.pop(key).nbytes


class TileReaders:
    """Threads that read what is wanted, the last that was wanted first."""

    def __init__(self, count: int) -> None:
        self._count, self._closing = count, False
        self._threads: list[threading.Thread] = []
        self._passing: deque[_Wanted] = deque()
        self._lasting: deque[_Wanted] = deque()
        self._reading: set[_Wanted] = set()
        self._condition = threading.Condition()

    def want(self, owner: Owner, keys: list[Key], *, lasting: bool = False) -> None:
        """Have tiles read, in the place of those that the owner wanted before.

        Parameters
        ----------
        lasting
            Beside those, whatever is wanted later.
        """
        of = weakref.ref(owner)
        with self._condition:
            known = {*self._lasting, *self._reading}
            new = [(of, key) for key in keys if (of, key) not in known]
            if lasting:
                self._lasting.extend(new)
            else:
                others = [wanted for wanted in self._passing if wanted[0] is not of]
                self._passing.clear()
                self._passing.extend([*new, *others])
            self._start()
            self._condition.notify_all()

    def owe(self, owner: Owner) -> bool:
        """Tell whether anything is still to be read for an owner."""
        of = weakref.ref(owner)
        with self._condition:
            return any(
                wanted[0] is of for wanted in (*self._passing, *self._lasting, *self._reading)
            )

    def close(self) -> None:
        """Let the threads end, each with the tile that it is at."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        """Start the threads, and others for those that a fault in the code has ended."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < self._count:
            # One of them begins with what lasts, the others with what is looked at.
            queues = (self._passing, self._lasting)
            order = queues if self._threads else queues[::-1]
            thread = threading.Thread(target=self._work, args=order, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self, *queues: deque[_Wanted]) -> None:
        """Read tile after tile."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or any(queues))
                if self._closing:
                    return
                wanted = next(queue for queue in queues if queue).popleft()
                self._reading.add(wanted)
            try:
                owner = wanted[0]()
                if owner is not None:
                    owner.load(wanted[1])
            finally:
                # Else it would not be freed before the next tile.
                owner = None
                with self._condition:
                    self._reading.discard(wanted)


CACHE = TileCache(CACHE_BYTES)
READERS = TileReaders(max(2, min(4, os.cpu_count() or 2)))
# A thread that Python ends while it decodes may take the process with it.
atexit.register(READERS.close)
