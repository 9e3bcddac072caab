"""Training through a sequence that is longer than memory: recompute instead of remembering.

Gradients need what was computed on the way to the loss. Of a layer of a Vim-Ti these are some 20 kB
a token. Here a layer remembers its residual stream alone, 768 bytes a token, in a file if need be,
and the state and halo before each chunk. From these any chunk can be computed again by itself, so
gradients go back through a layer chunk by chunk as well. As the state leads from chunk to chunk on
the way there, its gradient leads from chunk to chunk on the way back, in the opposite order.

Nothing is approximated: results and gradients are those of `VisionMamba.mix`.

Letters: ``b`` batch, ``l`` tokens, ``D`` width of a token, ``P`` side of a patch.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from gigavim.encoder import Block, DirectionState, Features, VisionMamba
from gigavim.errors import ModelError
from gigavim.store.disk import writing

__all__ = ["embed", "in_chunks", "mix"]


def mix(
    encoder: VisionMamba,
    tokens: Tensor,
    position: Tensor | None = None,
    *,
    chunk: int,
    folder: Path | None = None,
) -> Features:
    """Run `VisionMamba.mix`, for gradients through sequences of any length.

    Beyond a few arrays like `tokens`, memory depends on `chunk`, if there is a folder; without one,
    each layer keeps one more such array. Each layer is computed twice.

    Parameters
    ----------
    tokens
        What `embed` returned, in the order of the sequence, shape (b, l, D).
    position
        What `VisionMamba.position_for` returned, shape (l, D) or (b, l, D).
    chunk
        Tokens that are computed at once. For a CPU, `gigavim.mixer.TILE` fits its cache.
    folder
        For what is remembered: the bytes of `tokens` times the depth of the encoder. They lie in a
        file without a name, which is gone when the gradients have been computed, or the process
        has ended, however.

    Returns
    -------
    features
        Differentiable, once, in tokens, positions and parameters.

    Raises
    ------
    ModelError
        If the model has rotary positions or cross blocks.
    StoreError
        If the folder is full or cannot be written.
    """
    if chunk < 1:
        raise ValueError(f"a chunk is at least one token, not {chunk}")
    config = encoder.config
    if config.rope != "none" or config.block == "cross":
        what = "cross blocks" if config.block == "cross" else "rotary positions"
        raise ModelError(f"{what} cannot be recomputed in chunks; train with VisionMamba.mix")
    if position is not None:
        tokens = tokens + position
    residual = encoder.with_class_tokens(tokens, positioned=position is not None)
    del tokens
    remembering = contextlib.nullcontext() if folder is None else _Scratch(folder).remembering()
    with remembering:
        for layer in encoder.layers:
            residual = _Layer.apply(residual, layer, chunk, *layer.parameters())  # type: ignore[no-untyped-call]
    return encoder.read_out(in_chunks(encoder.norm_f, residual, chunk))


def embed(
    encoder: VisionMamba, read: Callable[[int, int], Tensor], length: int, *, chunk: int
) -> Tensor:
    """Run `VisionMamba.embed` on patches that are read when they are needed, and not kept.

    Parameters
    ----------
    read
        Called with start and stop; returns the normalised pixels of these patches, shape
        (stop - start, P, P, band). They are asked for again where gradients are computed.
    length
        How many patches there are.
    chunk
        Patches that are read at once.

    Returns
    -------
    tokens
        Shape (length, D).
    """

    def tokens(start: int) -> Tensor:
        return encoder.embed(read(start, min(start + chunk, length)))

    starts = range(0, max(1, length), chunk)
    return torch.cat([checkpoint(tokens, start, use_reentrant=False) for start in starts])


def in_chunks(function: Callable[[Tensor], Tensor], tokens: Tensor, chunk: int) -> Tensor:
    """Apply a function of single tokens, for instance a decoder, to `chunk` of them at a time.

    What it computes in between is not kept for the gradients, but computed again.

    Parameters
    ----------
    function
        From shape (b, chunk, ...) to shape (b, chunk, ...).
    tokens
        Shape (b, l, ...).
    """
    parts = torch.split(tokens, chunk, 1)  # the gradient of a slice would be as large as all tokens
    return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts], 1)


class _Layer(torch.autograd.Function):
    """A block and what it is added to: from one residual stream to the next."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, block: Block, chunk: int, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.block, ctx.chunk = block, chunk
        ctx.versions = [each._version for each in parameters]
        ctx.products = _products_as_now(residual.device.type)
        out = residual.clone()
        parts, out_parts = (torch.split(each, chunk, 1) for each in (residual, out))
        sweeps: list[list[DirectionState]] = []
        with ctx.products:
            _, at_end = block.step(residual[:, :0], DirectionState())
            for reverse in _directions(block):
                state, before = at_end, [at_end] * len(parts)
                for number in _in_order(len(parts), reverse):
                    if _borrows_halo(block, reverse):
                        state = state._replace(halo=sweeps[0][number].halo)
                    before[number] = state
                    share, state = block.step(parts[number], state, reverse=reverse)
                    out_parts[number].add_(share)
                sweeps.append(before)
        states = (torch.stack(each) for before in sweeps for each in zip(*before, strict=True))
        ctx.save_for_backward(residual, *states)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        block: Block = ctx.block
        if ctx.versions != [each._version for each in block.parameters()]:
            raise RuntimeError(
                "the weights have changed since the features were computed from them; "
                "compute gradients before the step of the optimiser"
            )
        residual, *states = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        trained = list(itertools.compress(block.parameters(), needed))
        d_trained = [torch.zeros_like(each) for each in trained]
        d_residual = d_out.clone()
        parts, d_out_parts, d_parts = (
            torch.split(each, ctx.chunk, 1) for each in (residual, d_out, d_residual)
        )
        # What the backward direction's chunks send to halos that they have from the forward one.
        d_borrowed: list[Tensor | int] = [0] * len(parts)
        for reverse in reversed(_directions(block)):
            h, halo = states[2 * reverse : 2 * reverse + 2]
            d_state = DirectionState(torch.zeros_like(h[0]), torch.zeros_like(halo[0]))
            for number in reversed(_in_order(len(parts), reverse)):
                leaves = [
                    each.detach().requires_grad_()
                    for each in (parts[number], h[number], halo[number])
                ]
                with torch.enable_grad(), ctx.products:
                    share, state = block.step(
                        leaves[0], DirectionState(*leaves[1:]), reverse=reverse
                    )
                assert state.h is not None
                assert state.halo is not None
                d_part, d_h, d_halo, *d_parameters = torch.autograd.grad(
                    [share, state.h, state.halo],
                    [*leaves, *trained],
                    [d_out_parts[number].to(share.dtype), *d_state],
                    materialize_grads=True,
                )
                d_parts[number].add_(d_part)
                for total, d_parameter in zip(d_trained, d_parameters, strict=True):
                    total.add_(d_parameter)
                if _borrows_halo(block, reverse):
                    d_borrowed[number], d_halo = d_halo, torch.zeros_like(d_halo)
                else:
                    d_halo = d_halo + d_borrowed[number]
                d_state = DirectionState(d_h, d_halo)
        gradients = iter(d_trained)
        return (
            d_residual,
            None,
            None,
            *(next(gradients) if each else None for each in needed),
        )


def _directions(block: Block) -> tuple[bool, ...]:
    """Return whether each direction of a block is the reverse one."""
    return (False,) if block.mixer.directions == "forward" else (False, True)


def _borrows_halo(block: Block, reverse: bool) -> bool:
    """Return whether a direction convolves in reading order, with the forward direction's halo."""
    return reverse and block.mixer.directions == "v1"


def _in_order(count: int, reverse: bool) -> range:
    """Return the chunks in the order in which a direction takes them."""
    return range(count)[:: -1 if reverse else 1]


def _products_as_now(kind: str) -> torch.autocast:
    """Return a context, for a kind of device, with matrix products in the present precision.

    Without a cache: weights that it has converted without gradients would be taken with gradients.
    """
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype, enabled, cache_enabled=False)


class _Place(NamedTuple):
    """Where a tensor lies in a scratch, and what it is."""

    start: int
    """Of its first byte."""
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Scratch:
    """A file without a name for tensors that gradients need; the last of them takes it along.

    It is read and written, not mapped: what the system caches of it is not counted as this
    process's memory and goes when memory is short, and a full disk is an error, not a signal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = 0
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def remembering(self) -> saved_tensors_hooks:
        """Return a context whose operations have here what they save for their gradients."""
        return saved_tensors_hooks(self._save, self._load)

    def _save(self, tensor: Tensor) -> _Place:
        place = _Place(self._stop, tensor.shape, tensor.dtype, tensor.device)
        view = _bytes_of(tensor.cpu().contiguous())
        self._stop += len(view)
        with writing(self._folder):
            self._file.seek(place.start)
            while view:
                view = view[self._file.write(view) :]
        return place

    def _load(self, place: _Place) -> Tensor:
        tensor = torch.empty(place.shape, dtype=place.dtype)
        view = _bytes_of(tensor)
        with writing(self._folder):
            self._file.seek(place.start)
            while view:
                view = view[self._file.readinto(view) :]
        return tensor.to(place.device)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Look at the bytes of a contiguous tensor on the CPU; NumPy has no bfloat16."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
