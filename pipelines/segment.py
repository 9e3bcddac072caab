"""What a worker does with one segment of a shared sequence; `gigavim.pipelines.share` says why.

Functions of files and small messages alone, so that any worker can do the work of any other one.
Letters as in `gigavim.mixer`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim import __version__
from gigavim.checkpoint import load_model
from gigavim.encoder import Block, DirectionState, VisionMamba
from gigavim.errors import GigavimError, ModelError, StoreError
from gigavim.kernels.scan import combine
from gigavim.mixer import TILE, Direction
from gigavim.store.disk import writing

Rows = NDArray[Any]
"""Tokens or residuals, shape (l, D), float32 or float64."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Which model computes, and in which dtype; small enough to send with each task."""

    path: str
    sha256: str
    version: str
    """Of GigaVim."""
    device: str
    dtype: str

    @classmethod
    def of(cls, path: Path, sha256: str, encoder: VisionMamba) -> Weights:
        """Describe a model that is loaded here."""
        some = next(encoder.parameters())
        dtype = str(some.dtype).removeprefix("torch.")
        return cls(str(path.absolute()), sha256, __version__, str(some.device), dtype)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that one worker mixes."""

    number: int
    of: int
    """How many segments there are."""
    start: int
    """Its first token in the whole sequence."""
    length: int
    weights: Weights
    folder: str
    """Where residuals are spilled; all workers see it."""
    identity: str
    """What the sequence, its cuts and the model are, hashed."""
    chunk: int
    """Tokens whose projections are held at once."""

    def spill(self, layer: int) -> Path:
        """Return the file of the residual before a layer; behind the last layer, of the result."""
        return Path(self.folder, f"{self.identity}.segment-{self.number:03}.layer-{layer:03}.npy")

    def half(self, layer: int) -> Path:
        """Return the file of the residual to which a layer has added one direction's share."""
        return self.spill(layer).with_suffix(".half.npy")


class Ends(NamedTuple):
    """The rows of a residual that its neighbours' convolutions see, at most taps - 1 each."""

    first: Rows
    last: Rows


class Beside(NamedTuple):
    """The rows of the whole sequence that a segment's convolutions see, at most taps - 1 each."""

    before: Rows
    after: Rows


class Summary(NamedTuple):
    """What a segment makes of a state: ``exp(A s) h + h_local``."""

    s: NDArray[Any]
    """Shape (E,)."""
    h_local: NDArray[Any]
    """Shape (E, N)."""


class Projected(NamedTuple):
    """What `Mixer.in_proj` makes of a tile, shape (1, l, 2 E), and of the tokens beside it."""

    xz: Tensor
    before: Tensor
    """Shape (1, taps - 1, E); zeros before the sequence."""
    after: Tensor


class Kept(NamedTuple):
    """What the next walk over a tile need not compute again."""

    projected: Projected
    y: Tensor | None
    """Of the direction that was scanned."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The first round of a layer over a segment; stays with its worker."""

    scanned: bool | None
    """The direction that has been scanned (True: the backward one), if any."""
    summaries: dict[bool, Summary]
    """By direction, those that the segments behind this one need."""
    kept: dict[int, Kept]
    """By the first token of the tile."""


@torch.inference_mode()
def begin(segment: Segment, layer: int, beside: Beside) -> Begun:
    """Scan in the direction that begins with this segment; summarise those that pass through it.

    Parameters
    ----------
    beside
        What the neighbours hold.

    Raises
    ------
    GigavimError
        If this worker has another version or model, lacks the spill, cannot write, or a state
        becomes infinite or NaN.
    """
    work = _Layer(segment, layer, beside)
    begins = {False: segment.number == 0, True: segment.number == segment.of - 1}
    for reverse in work.directions:
        if begins[reverse]:
            h, kept = work.scan(reverse, None, {}, last=len(work.directions) == 1)
            # Nothing comes in, so whatever s is, h is the state that goes out.
            summary = Summary(np.zeros(len(h), _numpy(h).dtype), _numpy(h))
            return Begun(reverse, {reverse: summary}, kept)
    return Begun(None, *work.summarise([r for r in work.directions if not begins[not r]]))


def summaries(begun: Begun) -> dict[bool, Summary]:
    """Return what leaves the worker after the first round."""
    return begun.summaries


@torch.inference_mode()
def finish(
    segment: Segment,
    layer: int,
    beside: Beside,
    begun: Begun,
    incoming: dict[bool, NDArray[Any]],
) -> Ends:
    """Scan in the directions that are left and spill the residual before the next layer.

    Parameters
    ----------
    incoming
        By direction, the state in which it enters the segment, shape (E, N).

    Returns
    -------
    ends
        Of the spilled residual.

    Raises
    ------
    GigavimError
        As in `begin`.
    """
    work, kept = _Layer(segment, layer, beside), begun.kept
    left = [reverse for reverse in work.directions if reverse != begun.scanned]
    for reverse in left:
        h = torch.tensor(incoming[reverse])
        _, kept = work.scan(reverse, h, kept, last=reverse == left[-1])
    return ends_of(segment, layer + 1, work.reach)


def ends_of(segment: Segment, layer: int, reach: int) -> Ends:
    """Return the outermost rows of a spilled residual, `reach` of them at each end."""
    rows = load_rows(segment.spill(layer))
    return Ends(np.array(rows[:reach]), np.array(rows[max(0, len(rows) - reach) :]))


class _Layer:
    """One block over one segment, a tile at a time."""

    def __init__(self, segment: Segment, layer: int, beside: Beside) -> None:
        self.encoder = _encoder(segment.weights)
        block = self.encoder.layers[layer]
        assert isinstance(block, Block)
        self.block, self.mixer = block, block.mixer
        self.directions = (False,) if self.mixer.directions == "forward" else (False, True)
        self.reach = self.encoder.config.conv - 1
        self.segment, self.layer, self.beside = segment, layer, beside
        self.residual = load_rows(segment.spill(layer))
        self.device = torch.device(segment.weights.device)
        size = min(segment.chunk, TILE) if self.device.type == "cpu" else segment.chunk
        self.tiles = [
            slice(start, min(start + size, segment.length))
            for start in range(0, segment.length, size)
        ]

    def scan(
        self, reverse: bool, h: Tensor | None, kept: dict[int, Kept], *, last: bool
    ) -> tuple[Tensor, dict[int, Kept]]:
        """Scan the segment in one direction from state h, shape (E, N).

        What it adds is kept for the last `chunk` tokens, and in the ``half`` file for the others;
        the last direction adds all to the residual, and spills it.
        """
        direction = self.mixer.direction(reverse=reverse)
        state = self._zero(direction) if h is None else h[None].to(self.device)
        shape = self.residual.shape
        keeping: dict[int, Kept] = {}
        with contextlib.ExitStack() as files:
            write: Callable[[int, Rows], None] | None = None
            half: Rows | None = None
            if last:
                target = self.segment.spill(self.layer + 1)
                write = files.enter_context(spilling(target, shape, self.residual.dtype))
            if self.segment.length > self.segment.chunk and len(self.directions) == 2:
                target = self.segment.half(self.layer)
                if last:
                    half = load_rows(target)
                else:
                    write = files.enter_context(spilling(target, shape, self.residual.dtype))
            for tile in reversed(self.tiles) if reverse else self.tiles:
                left = tile.stop if reverse else self.segment.length - tile.start
                projected, other = kept.get(tile.start) or Kept(self._project(tile), None)
                halo = projected.after if direction.conv_reverse else projected.before
                y, (new, _) = self.mixer.scan(projected.xz, direction, DirectionState(state, halo))
                assert new is not None
                state = new
                self._check(state, tile)
                if not last and left <= self.segment.chunk:
                    keeping[tile.start] = Kept(projected, y)
                    continue
                base = self.residual if half is None or other is not None else half
                added = self.mixer.project(y if other is None else y + other)
                # A copy: PyTorch knows no tensors that cannot be written to.
                rows = torch.from_numpy(np.array(base[tile])).to(self.device).add_(added[0])
                if last and self.layer == len(self.encoder.layers) - 1:
                    rows = self.encoder.norm_f(rows)
                assert write is not None
                write(tile.start, _numpy(rows))
        return state[0], keeping

    def summarise(self, directions: Sequence[bool]) -> tuple[dict[bool, Summary], dict[int, Kept]]:
        """Summarise the segment, and keep projections of the tiles that are scanned last."""
        found, kept = {}, {}
        totals = {}
        for reverse in directions:
            zero = self._zero(self.mixer.direction(reverse=reverse))
            totals[reverse] = (zero[..., 0], zero)
        for tile in self.tiles if directions else ():
            projected = self._project(tile)
            for reverse in directions:
                direction = self.mixer.direction(reverse=reverse)
                halo = projected.after if direction.conv_reverse else projected.before
                here, total = self.mixer.summary(projected.xz, direction, halo), totals[reverse]
                pair = (here, total) if reverse else (total, here)
                totals[reverse] = combine(*pair, direction.A)
                self._check(totals[reverse][1], tile)
            if self.segment.length - tile.start <= self.segment.chunk:
                kept[tile.start] = Kept(projected, None)
        for reverse, (s, h_local) in totals.items():
            found[reverse] = Summary(_numpy(s[0]), _numpy(h_local[0]))
        return found, kept

    def _project(self, tile: slice) -> Projected:
        """Project a tile together with the tokens beside it, wherever those are."""
        before = self._rows(tile.start - self.reach, tile.start)
        after = self._rows(tile.stop, tile.stop + self.reach)
        rows = np.concatenate([before, self.residual[tile], after])
        tokens = torch.from_numpy(rows).to(self.device)
        xz = self.mixer.in_proj(self.block.norm(tokens))[None]
        inner = self.encoder.config.inner
        end = len(rows) - len(after)
        return Projected(
            xz[:, len(before) : end],
            nn.functional.pad(xz[:, : len(before), :inner], (0, 0, self.reach - len(before), 0)),
            nn.functional.pad(xz[:, end:, :inner], (0, 0, 0, self.reach - len(after))),
        )

    def _rows(self, start: int, stop: int) -> Rows:
        """Return rows of the sequence, counted from the segment's first, as far as there are."""
        length, known = self.segment.length, len(self.beside.before)
        return np.concatenate(
            [
                self.beside.before[max(0, known + start) : max(0, known + min(stop, 0))],
                self.residual[max(0, start) : max(0, min(stop, length))],
                self.beside.after[max(0, start - length) : max(0, stop - length)],
            ]
        )

    def _zero(self, direction: Direction) -> Tensor:
        dtype = torch.promote_types(direction.A.dtype, torch.float32)
        return direction.A.new_zeros((1, *direction.A.shape), dtype=dtype)

    def _check(self, state: Tensor, tile: slice) -> None:
        if not torch.isfinite(state).all():
            start, depth = self.segment.start, len(self.encoder.layers)
            raise ModelError(
                f"a state of layer {self.layer + 1} of {depth} became infinite or NaN over rows "
                f"{start + tile.start} to {start + tile.stop}; check the weights, and the pixels "
                "there"
            )


@functools.lru_cache(maxsize=1)
def _encoder(weights: Weights) -> VisionMamba:
    here = platform.node()
    if weights.version != __version__:
        raise GigavimError(
            f"worker on {here} has GigaVim {__version__}, not {weights.version}; "
            "install the same version for all workers"
        )
    model = load_model(weights.path, weights.device)
    if model.sha256 != weights.sha256:
        raise ModelError(
            f"{weights.path} on {here} is another model ({model.sha256[:12]}, "
            f"not {weights.sha256[:12]}); copy the same file to all workers"
        )
    return model.encoder.to(getattr(torch, weights.dtype))


def load_rows(path: Path) -> Rows:
    """Map a spilled residual into memory.

    Raises
    ------
    StoreError
        If it is not there.
    """
    try:
        rows: Rows = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is not to be seen on {platform.node()}; put the scratch folder where all "
            "workers see it"
        ) from error
    return rows


@contextlib.contextmanager
def spilling(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[Callable[[int, Rows], None]]:
    """Write a .npy file by rows, in any order; it has its name once it is complete.

    By plain writes: on a full disk a memory map would end the process.

    Raises
    ------
    StoreError
        If the disk refuses.
    """
    # Two workers may write the same file where one is thought lost and is not.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with writing(path):
        try:
            with partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                origin, row = file.tell(), dtype.itemsize * int(np.prod(shape[1:]))

                def write(start: int, rows: Rows) -> None:
                    file.seek(origin + start * row)
                    file.write(np.ascontiguousarray(rows, dtype).data)

                yield write
                file.truncate(origin + shape[0] * row)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
