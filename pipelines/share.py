"""One sequence mixed by the workers of a Dask cluster, exactly.

The sequence is cut in segments, one a worker. In each layer either direction of the scan enters a
segment with the state in which it left the one before; all that a segment does to a state is its
summary ``(s, h_local)``, a few thousand numbers however long it is. So a layer takes two rounds:

1. The first segment scans forward, the last one backward: nothing comes in there. The segments
   between them summarise both directions.
2. From the summaries follow all incoming states, and each segment scans what it has not scanned.

Two workers thus do nothing twice. With more, those in the middle read their tokens twice, so they
get half as many as those at the ends. What travels is summaries, states and the few rows beside a
cut that the convolution sees; the residual stream stays in one spill file a segment and layer, from
which any worker can do again what a lost one was at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim import __version__
from gigavim.checkpoint import Model
from gigavim.encoder import VisionMamba
from gigavim.errors import GigavimError, ModelError
from gigavim.kernels.scan import combine
from gigavim.pipelines.segment import (
    Beside,
    Ends,
    Rows,
    Segment,
    Summary,
    Weights,
    begin,
    ends_of,
    finish,
    load_rows,
    spilling,
    summaries,
)
from gigavim.pipelines.stream import silence_dask

PATIENCE_S = 10
"""Seconds that a scheduler, and its first worker, have to answer."""


class Workers(Protocol):
    """Whoever does the work of the segments."""

    def __len__(self) -> int: ...

    def submit(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        """Have the work of a segment done; arguments may be what an earlier call returned."""

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for results."""


class DaskWorkers:
    """The workers of a Dask cluster; a segment stays with its worker as long as this one lives."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __len__(self) -> int:
        return len(self.client.nthreads())

    def submit(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        """Have the work of a segment done, by another worker where its own is lost."""
        addresses = sorted(self.client.nthreads())
        where = addresses[number % len(addresses)] if addresses else None
        return self.client.submit(
            function, *args, workers=where, allow_other_workers=where is not None, pure=False
        )

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for results."""
        results: list[Any] = self.client.gather(list(futures))
        return results


@contextmanager
def dask_workers(count: int | None = None, scheduler: str | None = None) -> Iterator[DaskWorkers]:
    """Start workers on this machine, or find those of a cluster.

    Parameters
    ----------
    count
        Processes to start, which share the cores.
    scheduler
        Address of a running scheduler, as in ``tcp://host:8786``; nothing is started then.

    Raises
    ------
    GigavimError
        If the scheduler does not answer, has no workers, or they have another version; later, if
        the cluster is lost.
    """
    import dask
    from distributed import Client, KilledWorker, LocalCluster

    with ExitStack() as stack:
        if scheduler is None:
            count = count or 1
            threads = str(max(1, (os.cpu_count() or 1) // count))
            environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
            # A worker that is lost or fails says so at length, there and here; we say it in a line,
            # or mend it.
            environment["DASK_LOGGING__DISTRIBUTED"] = "critical"
            silence_dask()
            with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}):
                cluster = LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    # The scheduler insists on a port; a free one lets many runs live side by side.
                    dashboard_address="127.0.0.1:0",
                )
            address = stack.enter_context(cluster)
        else:
            address = scheduler
        try:
            client = stack.enter_context(
                Client(address, timeout=PATIENCE_S, set_as_default=False)  # type: ignore[no-untyped-call]
            )
            client.wait_for_workers(1, timeout=PATIENCE_S)
        # Another kind of server answers with bytes that Dask takes for an enormous length.
        except (OSError, ValueError, MemoryError) as error:
            fault = str(error).splitlines()[0].lower()
            raise GigavimError(
                f"no Dask workers at {scheduler or 'this machine'}: {fault}; start them with "
                "`dask scheduler` and `dask worker`, or use --workers N on this machine"
            ) from error
        check_versions(client)
        try:
            yield DaskWorkers(client)
        except KilledWorker as error:
            raise GigavimError(
                "a segment has ended several workers, most likely for want of memory; "
                "give it a smaller --max-memory, or more workers"
            ) from error
        except CancelledError as error:
            raise GigavimError(
                "the scheduler was lost; the same command continues after the last whole layer"
            ) from error


@dataclass(frozen=True, slots=True)
class Mixed:
    """The features of a sequence, as files of the scratch folder."""

    parts: tuple[NDArray[Any], ...]
    """Features in order, without class tokens, shape (l, D) each, mapped from disk."""
    vector: NDArray[Any]
    """Of the whole sequence, shape (D,)."""

    def tokens(self, start: int, stop: int) -> NDArray[Any]:
        """Return the features of some tokens, shape (stop - start, D)."""
        ends = np.cumsum([len(part) for part in self.parts])
        taken = [
            part[max(0, start - (end - len(part))) : max(0, stop - (end - len(part)))]
            for part, end in zip(self.parts, ends, strict=True)
        ]
        return np.concatenate(taken)


def mix_shared(
    workers: Workers,
    model: Model,
    tokens: Iterable[Rows],
    length: int,
    *,
    folder: Path,
    chunk: int,
    lengths: Sequence[int] | None = None,
    on_layer: Callable[[int], None] = lambda tokens: None,
) -> Mixed:
    """Let all tokens of a sequence see each other, as `VisionMamba.mix` does, by many workers.

    Taken up again with the same tokens, model, lengths and folder, it goes on after the last
    layer that was done.

    Parameters
    ----------
    tokens
        With their positions, without class tokens, in order, shape (l, D) each.
    length
        Of all of them.
    folder
        For the spills of up to three layers; all workers see it, nothing else is in it. The
        caller removes it when the result has been read.
    chunk
        Tokens whose projections a worker holds at once.
    lengths
        Of the segments, class tokens included; by default one a worker.
    on_layer
        Told the tokens of each layer that is done.

    Raises
    ------
    ModelError
        If the model needs all tokens at one place.
    GigavimError
        If a worker has another version or model, does not see the folder or cannot write to it,
        or if a state becomes infinite or NaN.
    """
    encoder, config = model.encoder, model.encoder.config
    if config.rope != "none":
        raise ModelError(
            f"{model.path} turns tokens by their position, which workers cannot do; "
            "leave --workers and --scheduler out"
        )
    places = config.class_index(length)
    total = length + len(places)
    lengths = cut(total, len(workers)) if lengths is None else lengths
    if sum(lengths) != total:
        raise ValueError(f"segments of {sum(lengths)} tokens for a sequence of {total}")
    segments = _spill(model, _with_class_rows(tokens, length, encoder), lengths, folder, chunk)

    reach, depth = config.conv - 1, len(encoder.layers)
    done = max(n for n in range(depth + 1) if all(s.spill(n).exists() for s in segments))
    ends = [ends_of(segment, done, reach) for segment in segments]
    for layer in range(done, depth):
        beside = _beside(ends, reach)
        begun = [
            workers.submit(s.number, begin, s, layer, near)
            for s, near in zip(segments, beside, strict=True)
        ]
        found = workers.gather(
            [workers.submit(n, summaries, future) for n, future in enumerate(begun)]
        )
        incoming = _incoming(found, encoder, layer)
        ends = workers.gather(
            [
                workers.submit(s.number, finish, s, layer, near, first, states)
                for s, near, first, states in zip(segments, beside, begun, incoming, strict=True)
            ]
        )
        _keep_only(folder, {segment.spill(layer + 1) for segment in segments})
        on_layer(length)
    return _read_out(segments, places, encoder)


def cut(total: int, workers: int) -> tuple[int, ...]:
    """Return how many tokens each of the segments gets, so that all take the same time.

    >>> cut(1000, 2), cut(1000, 3)
    ((500, 500), (400, 200, 400))
    """
    weights = np.ones(max(1, workers))
    weights[0] = weights[-1] = 2
    stops = np.rint(np.cumsum(weights) / weights.sum() * total).astype(int)
    return tuple(int(length) for length in np.diff(stops, prepend=0))


def _with_class_rows(tokens: Iterable[Rows], length: int, encoder: VisionMamba) -> Iterator[Rows]:
    """Put class tokens at their places in the whole sequence."""
    places = encoder.config.class_index(length)
    with torch.inference_mode():
        rows = encoder.class_rows(positioned=True).cpu().numpy() if places else np.empty((0, 0))
    # Counted in tokens that are no class tokens.
    before = [place - number for number, place in enumerate(places)]
    done = 0
    for part in tokens:
        here = [n for n, at in enumerate(before) if done <= at < done + len(part)]
        yield np.insert(part, [before[n] - done for n in here], rows[here], 0) if here else part
        done += len(part)
    if done != length:
        raise ValueError(f"{done} tokens were given as {length}")
    if last := [n for n, at in enumerate(before) if at == length]:
        yield rows[last]


def _spill(
    model: Model, rows: Iterable[Rows], lengths: Sequence[int], folder: Path, chunk: int
) -> list[Segment]:
    """Write the sequence in segments, named by all that decides on the result."""
    weights = Weights.of(model.path, model.sha256, model.encoder)
    dtype, width = np.dtype(weights.dtype), model.encoder.config.width
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((weights.sha256, __version__, weights.dtype, tuple(lengths))).encode())
    stops = np.cumsum(lengths)
    starts = stops - lengths
    fresh = [folder / f"tokens-{number:03}.npy" for number in range(len(lengths))]
    with ExitStack() as files:
        writers = [
            files.enter_context(spilling(path, (count, width), dtype))
            for path, count in zip(fresh, lengths, strict=True)
        ]
        done = 0
        for part in rows:
            part = np.ascontiguousarray(part, dtype)
            digest.update(part.data)
            for write, start, stop in zip(writers, starts, stops, strict=True):
                piece = part[max(0, start - done) : max(0, stop - done)]
                write(max(0, done - start), piece)
            done += len(part)
    segments = [
        Segment(
            number, len(lengths), int(start), count, weights, str(folder.absolute()),
            digest.hexdigest(), chunk,
        )
        for number, (start, count) in enumerate(zip(starts, lengths, strict=True))
    ]  # fmt: skip
    for segment, path in zip(segments, fresh, strict=True):
        path.replace(segment.spill(0))
    _keep_only(folder, set(folder.glob(f"{digest.hexdigest()}.*")))
    return segments


def _beside(ends: Sequence[Ends], reach: int) -> list[Beside]:
    """Tell each segment the rows beside it, which short neighbours have from further away."""
    before, after = [ends[0].first[:0]], [ends[-1].last[:0]]
    for end in ends[:-1]:
        before.append(np.concatenate([before[-1], end.last])[-reach:])
    for end in reversed(ends[1:]):
        after.append(np.concatenate([end.first, after[-1]])[:reach])
    return [Beside(*pair) for pair in zip(before, reversed(after), strict=True)]


@torch.inference_mode()
def _incoming(
    found: Sequence[dict[bool, Summary]], encoder: VisionMamba, layer: int
) -> list[dict[bool, NDArray[Any]]]:
    """Combine the summaries of segments to the states, by direction, that come into each."""
    incoming: list[dict[bool, NDArray[Any]]] = [{} for _ in found]
    mixer: Any = encoder.layers[layer].mixer
    for reverse in (False,) if mixer.directions == "forward" else (False, True):
        A = mixer.direction(reverse=reverse).A.cpu()
        state = (torch.zeros(()), torch.zeros(A.shape, dtype=A.dtype))
        numbers = range(len(found))
        for number in reversed(numbers) if reverse else numbers:
            incoming[number][reverse] = state[1].numpy()
            if reverse in found[number]:  # the last one's is of use to nobody
                s, h_local = (torch.tensor(part) for part in found[number][reverse])
                state = combine(state, (s, h_local), A)
    return incoming


def _keep_only(folder: Path, paths: set[Path]) -> None:
    for path in folder.iterdir():
        if path.absolute() not in {path.absolute() for path in paths}:
            path.unlink(missing_ok=True)


def _read_out(segments: Sequence[Segment], places: Sequence[int], encoder: VisionMamba) -> Mixed:
    """Tell the class tokens from the others."""
    parts, classes = [], []
    for segment in segments:
        rows = load_rows(segment.spill(len(encoder.layers)))
        here = [at - segment.start for at in places if 0 <= at - segment.start < len(rows)]
        classes += [rows[at] for at in here]
        for start, stop in zip([0, *(at + 1 for at in here)], [*here, len(rows)], strict=True):
            parts.append(rows[start:stop])
    if classes:
        vector = np.mean(classes, 0)
    elif encoder.config.pool == "last":
        vector = np.array([part for part in parts if len(part)][-1][-1])
    else:
        sums = [part.sum(0, dtype=np.float64) for part in parts]
        vector = np.sum(sums, 0) / sum(len(part) for part in parts)
    return Mixed(tuple(parts), vector.astype(parts[0].dtype))


def check_versions(client: Any) -> None:
    """Ask before anything is sent that a worker without GigaVim could not even unpickle."""
    found = client.run(importlib.metadata.version, "gigavim", on_error="return")
    for address, version in found.items():
        if version != __version__:
            what = f"GigaVim {version}" if isinstance(version, str) else "no GigaVim"
            raise GigavimError(
                f"worker {address} has {what}, this is {__version__}; "
                "install the same version for all workers"
            )
