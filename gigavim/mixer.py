"""The bidirectional Mamba block: what lets the tokens of a sequence see each other.

Letters: ``b`` batch, ``l`` tokens, ``D`` width of a token, ``E`` inner channels, ``N`` states of a
channel, ``R`` rank of the step sizes.

A block passes over its sequence twice, forward in reading order, then backward. It takes a tile of
tokens at a time, so that on the CPU what becomes of a tile from projection to convolution and scan
stays in the cache, and the next tile, and the next block, find the same memory free again. What is
projected is kept for the way back, as far as it may be held at once; the rest is projected again.
On a GPU, without gradients, `gigavim.kernels.block` computes the same in fewer passes over memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig
from gigavim.kernels import (
    ScanInputs,
    bidirectional_scan,
    causal_conv,
    scan_backend,
    scan_summary,
    selective_scan,
)
from gigavim.kernels.block import BlockWeights, DirectionWeights, fused_block, fused_step

__all__ = ["Block", "DirectionState", "Mixer", "norm_of"]

NORM_EPS = 1e-5
"""Added to the mean square, or variance, that a norm divides by."""
TILE = 2048
"""Tokens that a CPU takes at once: few enough for its cache, enough to call PyTorch rarely."""


class DirectionState(NamedTuple):
    """What one direction of one block carries from chunk to chunk; None where it begins."""

    h: Tensor | None = None
    """State of the scan, shape (b, E, N)."""
    halo: Tensor | None = None
    """The tokens that the convolution still sees, shape (b, taps - 1, E)."""


class Direction(NamedTuple):
    """What one direction of a mixer convolves and scans with."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A: Tensor
    D: Tensor
    reverse: bool
    conv_reverse: bool


class Tile(NamedTuple):
    """Where the forward direction has been, and what the backward one needs of it."""

    cut: slice
    halo: Tensor | None
    """Of the forward direction before the tile."""
    kept: tuple[Tensor, Tensor] | None
    """What `Mixer.in_proj` and `Mixer.scan` made of it, unless memory is short."""


class Mixer(nn.Module):
    """The bidirectional Mamba mixer: algorithm 1 of the paper, without its norm and residual."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        D, E, N, R = config.width, config.inner, config.state, config.rank
        self.directions = config.directions
        self.scale = 0.5 if config.halve and config.directions == "v2" else 1.0
        self.split = (R, N, N)
        both = config.directions != "forward"
        decay = torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(E, 1)  # (E, N)

        self.A_log = nn.Parameter(decay)
        self.D = nn.Parameter(torch.ones(E))
        if both:
            self.A_b_log = nn.Parameter(decay.clone())
        if config.directions == "v2":
            self.D_b = nn.Parameter(torch.ones(E))
        if config.layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((D,), config.layer_scale))
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.conv, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        if config.directions == "v2":
            self.conv1d_b = nn.Conv1d(E, E, config.conv, groups=E)
            self.x_proj_b = nn.Linear(E, R + 2 * N, bias=False)
            self.dt_proj_b = nn.Linear(R, E)
        self.out_proj = nn.Linear(E, D, bias=False)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: VisionMambaConfig) -> None:
        """Initialise as the published training does, zero bias of the backward steps included."""
        nn.init.uniform_(self.dt_proj.weight, -(config.rank**-0.5), config.rank**-0.5)
        step = torch.empty(config.inner).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(1e-4)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is step
        if config.directions == "v2":
            nn.init.zeros_(self.dt_proj_b.bias)
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight.div_(math.sqrt(config.depth))

    def direction(self, *, reverse: bool) -> Direction:
        """Return what one of the two directions works with."""
        if reverse and self.directions == "v2":
            A = -torch.exp(self.A_b_log)
            return Direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, A, self.D_b, True, True)
        A = -torch.exp(self.A_b_log if reverse else self.A_log)
        # v1 convolves in reading order for both directions.
        return Direction(self.conv1d, self.x_proj, self.dt_proj, A, self.D, reverse, False)

    def scan(
        self, xz: Tensor, direction: Direction, state: DirectionState
    ) -> tuple[Tensor, DirectionState]:
        """Convolve, scan and gate what `in_proj` made, in one direction, shape (b, l, E)."""
        inputs, halo = self._inputs(xz, direction, state)
        y, h = selective_scan(*inputs[:8], dt_softplus=True, h=inputs.h, reverse=direction.reverse)
        return y, DirectionState(h, halo)

    def scan_end(self, xz: Tensor, state: DirectionState) -> tuple[Tensor, DirectionState]:
        """Sum both directions over the last tile, where one ends and the other begins.

        `state` is the forward direction's before the tile; the backward one's after it is returned.
        """
        backward = self.direction(reverse=True)
        begin = DirectionState(None, None if backward.conv_reverse else state.halo)
        inputs, _ = self._inputs(xz, self.direction(reverse=False), state)
        reversed_inputs, halo = self._inputs(xz, backward, begin)
        (y, _), (y_reverse, h) = bidirectional_scan(inputs, reversed_inputs, dt_softplus=True)
        return y + y_reverse, DirectionState(h, halo)

    def summary(
        self, xz: Tensor, direction: Direction, halo: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what `scan` makes of any state, as `gigavim.kernels.scan_summary` says it."""
        inputs, _ = self._inputs(xz, direction, DirectionState(halo=halo))
        return scan_summary(
            inputs.dt, inputs.A, inputs.B, inputs.u, inputs.dt_bias,
            dt_softplus=True, reverse=direction.reverse,
        )  # fmt: skip

    def _inputs(
        self, xz: Tensor, direction: Direction, state: DirectionState
    ) -> tuple[ScanInputs, Tensor]:
        """Return what is scanned, and the next halo."""
        x, z = xz.chunk(2, -1)  # (b, l, E)
        conv, dt_proj, reverse = direction.conv, direction.dt_proj, direction.conv_reverse
        u, halo = causal_conv(
            x, conv.weight[:, 0], _present(conv.bias), halo=state.halo, reverse=reverse
        )
        dt, B, C = direction.x_proj(u).split(self.split, -1)  # (b, l, R), (b, l, N), (b, l, N)
        dt = nn.functional.linear(dt, dt_proj.weight)  # the scan adds the bias, in float32
        A, D = direction.A, direction.D
        return ScanInputs(u, dt, A, B, C, D, z, dt_proj.bias, state.h), halo

    def project(self, y: Tensor) -> Tensor:
        """Return what both directions, or the share of one, add to the tokens, (b, l, D)."""
        out: Tensor = self.out_proj(y)
        out = out if self.scale == 1.0 else out * self.scale
        return out * self.gamma if hasattr(self, "gamma") else out


class Block(nn.Module):
    """Norm, then mixer; the encoder adds what a block returns to the residual stream."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.mixer = Mixer(config)
        self.norm = norm_of(config)

    def forward(self, residual: Tensor, chunk: int | None = None) -> Tensor:
        """Return what the block adds to the residual stream, shape (b, l, D).

        With `chunk`, memory beyond input and output depends on `chunk` tokens alone.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk is at least one token, not {chunk}")
        if _is_fused(residual):
            return fused_block(residual, self.weights(), chunk=chunk)
        mixer, (batch, length) = self.mixer, residual.shape[:2]
        chunk = length if chunk is None else min(chunk, length)
        size = max(1, chunk)
        if residual.device.type == "cpu" and not torch.is_grad_enabled():
            size = min(size, max(1, TILE // max(1, batch)))
        added = torch.empty_like(residual)

        direction, state, tiles = mixer.direction(reverse=False), DirectionState(), []
        both = mixer.directions != "forward"
        for start in range(0, length, size):
            cut, halo = slice(start, start + size), state.halo
            xz = mixer.in_proj(self.norm(residual[:, cut]))
            if both and start + size >= length:
                y, state = mixer.scan_end(xz, state)
                added[:, cut] = mixer.project(y)
                break
            y, state = mixer.scan(xz, direction, state)
            keep = both and start >= length - chunk
            if not keep:
                added[:, cut] = mixer.project(y)
            tiles.append(Tile(cut, halo, (xz, y) if keep else None))
        if not both:
            return added

        direction = mixer.direction(reverse=True)
        while tiles:
            cut, halo, kept = tiles.pop()
            if not direction.conv_reverse:
                state = state._replace(halo=halo)
            xz = kept[0] if kept else mixer.in_proj(self.norm(residual[:, cut]))
            y, state = mixer.scan(xz, direction, state)
            if kept:
                added[:, cut] = mixer.project(kept[1] + y)
            else:
                added[:, cut] += mixer.project(y)
        return added

    def step(
        self, residual: Tensor, state: DirectionState, *, reverse: bool = False
    ) -> tuple[Tensor, DirectionState]:
        """Mix one chunk in one direction.

        Parameters
        ----------
        residual
            The residual stream of the chunk, shape (b, l, D).
        state
            As the neighbouring chunk returned it: the one before, or after if `reverse`. The ``v1``
            mixer convolves in reading order, and so needs the forward halo in both directions.
        reverse
            The backward direction.

        Returns
        -------
        added
            This direction's share of what the block adds to the residual stream, shape (b, l, D).
        state
            For the next chunk.
        """
        if _is_fused(residual):
            added, *after = fused_step(residual, self.weights(), *state, reverse=reverse)
            return added, DirectionState(*after)
        xz = self.mixer.in_proj(self.norm(residual))
        y, state = self.mixer.scan(xz, self.mixer.direction(reverse=reverse), state)
        return self.mixer.project(y), state

    def weights(self) -> BlockWeights:
        """Return what a kernel of the whole block takes, as `products_in` has its products."""
        mixer, norm = self.mixer, self.norm
        directions = (False,) if mixer.directions == "forward" else (False, True)
        weights = BlockWeights(
            norm_weight=norm.weight,
            norm_bias=getattr(norm, "bias", None),
            eps=NORM_EPS,
            in_proj=mixer.in_proj.weight,
            directions=tuple(
                _weights_of(mixer.direction(reverse=reverse)) for reverse in directions
            ),
            out_proj=mixer.out_proj.weight,
            scale=mixer.scale,
            gamma=getattr(mixer, "gamma", None),
        )
        kind = weights.in_proj.device.type
        if not torch.is_autocast_enabled(kind):
            return weights
        return weights.in_products(torch.get_autocast_dtype(kind))


def norm_of(config: VisionMambaConfig) -> nn.RMSNorm | nn.LayerNorm:
    """Return a new norm over the numbers of a token."""
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.width, eps=NORM_EPS)


def _is_fused(residual: Tensor) -> bool:
    """Return whether kernels of the whole block run here."""
    if not residual.is_cuda or torch.is_grad_enabled():
        return False
    return scan_backend(residual.device, residual.dtype).name == "triton"


def _weights_of(direction: Direction) -> DirectionWeights:
    conv, x_proj, dt_proj, A, D, reverse, conv_reverse = direction
    return DirectionWeights(
        conv.weight[:, 0], _present(conv.bias), x_proj.weight, dt_proj.weight, dt_proj.bias,
        A, D, reverse, conv_reverse,
    )  # fmt: skip


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None  # PyTorch types the bias of a layer as optional
    return bias
