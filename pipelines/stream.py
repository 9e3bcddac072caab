"""Bounded read-ahead on Dask: work goes out and comes back in order, a few items at a time."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def reader_pool(threads: int) -> Iterator[Any]:
    """Lend a Dask client whose workers are threads of this process.

    Readers spend their time in decoders that release the interpreter lock, and what they return is
    handed over without a copy. A pool of each size stays for the next image, as one that is closed
    leaves half a megabyte behind; Dask ends them with the process.
    """
    client = _pool(threads)
    if client.status != "running":
        _pool.cache_clear()
        client = _pool(threads)
    yield client


@functools.cache
def _pool(threads: int) -> Any:
    import dask
    from distributed import Client

    silence_dask()
    # Dask's logs of a thousand messages hold what was read with: images long done, and open.
    with dask.config.set({"distributed.admin.low-level-log-length": 0}):
        return Client(  # type: ignore[no-untyped-call]
            processes=False,
            n_workers=1,
            threads_per_worker=threads,
            # The scheduler insists on a port; a free one lets many runs live side by side.
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            set_as_default=False,
        )


def silence_dask() -> None:
    """Keep Dask's own log from the terminal: what stops or fails there is told by us, in a line.

    Its event loop is tornado's: a wait that is interrupted early fails there too, in
    ``distributed.utils.sync``.
    """
    for name in ("distributed", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def stream(
    client: Any, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Apply a function to items on a Dask client and yield the results in the items' order.

    At most ``ahead`` items are submitted and not yet taken, so memory is bounded.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    """
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(client.submit(function, item, pure=False))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
