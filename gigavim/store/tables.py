"""Arrays with a row for each token, written in few files however many rows there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import ZstdCodec

# What one read decodes, and how many of those share a file.
_CHUNK_ROWS = 2048
_CHUNKS_PER_SHARD = 16


def write_table(
    group: zarr.Group,
    name: str,
    parts: Iterable[NDArray[Any]],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> None:
    """Write an array that comes in parts along its first axis; holds one file of it at a time.

    Numbers that a network made do not compress, so floats are stored as they are.

    Raises
    ------
    ValueError
        If the parts do not add up to ``shape``.
    """
    dtype = np.dtype(dtype)
    length, width = shape[0], shape[1:]
    chunk = max(1, min(length, _CHUNK_ROWS))
    shard = chunk * max(1, min(-(-length // chunk), _CHUNKS_PER_SHARD))
    array = group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, *width),
        shards=(shard, *width),
        compressors=None if dtype.kind == "f" else ZstdCodec(),
        overwrite=True,
    )
    start = 0
    for rows in _regroup(parts, shard):
        if start + len(rows) > length:
            raise ValueError(f"{name} has {length} rows, and more than those came")
        array[start : start + len(rows)] = rows.astype(dtype, copy=False)
        start += len(rows)
    if start != length:
        raise ValueError(f"{name} has {length} rows, and {start} came")


def _regroup(parts: Iterable[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """Cut and join parts so that each but the last has ``rows`` rows, as a shard wants it.

    A shard written in two goes is read, merged and written again, and lost if two writers do so.
    """
    held: list[NDArray[Any]] = []
    count = 0
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + rows - count]
            held.append(piece)
            count += len(piece)
            start += len(piece)
            if count == rows:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)
