"""A whole Vim block on a GPU, without gradients, in few passes over memory.

Norm and input projection; convolution, SiLU and projections, of each direction; the scans; gate,
output projection and residual sum: what passes between these four lies in memory, and nothing else.
`gigavim.mixer.Block` is the same in plain PyTorch, `reference` holds the steps around the scan.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gigavim.kernels.block.operators import conv_project, gate_project, norm_project
from gigavim.kernels.scan.triton_scan import Inputs, scan_directions

__all__ = ["BlockWeights", "DirectionWeights", "fused_block", "fused_step"]


class DirectionWeights(NamedTuple):
    """What one direction of a block convolves and scans with; r is the rank of the step sizes."""

    taps: Tensor
    """Shape (d, k)."""
    conv_bias: Tensor
    """Shape (d,)."""
    x_proj: Tensor
    """Shape (r + 2 n, d)."""
    dt_proj: Tensor
    """Shape (d, r)."""
    dt_bias: Tensor
    """Shape (d,)."""
    A: Tensor
    """Negative, shape (d, n)."""
    D: Tensor
    """Shape (d,)."""
    reverse: bool
    """Whether it scans from the last token to the first."""
    conv_reverse: bool
    """Whether its convolution looks at the tokens after the current one."""


class BlockWeights(NamedTuple):
    """The weights of a block for tokens of m numbers."""

    norm_weight: Tensor
    """Shape (m,)."""
    norm_bias: Tensor | None
    """Shape (m,), of LayerNorm; None for RMSNorm."""
    eps: float
    in_proj: Tensor
    """Shape (2 d, m): the input of the scans, then their gate."""
    directions: tuple[DirectionWeights, ...]
    """Forward, then backward if there is one."""
    out_proj: Tensor
    """Shape (m, d)."""
    scale: float
    """Of what the block adds."""
    gamma: Tensor | None
    """The same for each number of a token, shape (m,)."""

    def in_products(self, dtype: torch.dtype) -> BlockWeights:
        """Return them with the weights of matrix products in another dtype."""
        return self._replace(
            in_proj=self.in_proj.to(dtype),
            out_proj=self.out_proj.to(dtype),
            directions=tuple(
                w._replace(x_proj=w.x_proj.to(dtype), dt_proj=w.dt_proj.to(dtype))
                for w in self.directions
            ),
        )


def fused_block(
    residual: Tensor, weights: BlockWeights, *, chunk: int | None = None, add: bool = False
) -> Tensor:
    """Return what a block adds to the residual stream, shape (b, l, m).

    Parameters
    ----------
    residual
        The residual stream, shape (b, l, m).
    weights
        Those of its products are all of one dtype, in which these are computed and what passes
        between kernels is kept; sums, step sizes and states are float32 (float64 of float64).
    chunk
        Tokens at a time, by default all. Beyond input and output, memory then depends on these
        alone, but they are projected twice.
    add
        Return the residual stream after the block instead. It may take the place of `residual`.
    """
    length = residual.shape[1]
    if chunk is None or chunk >= length:
        out = residual if add else torch.empty_like(residual)
        xz = _project_in(residual, weights)
        x, z = xz.chunk(2, -1)
        inputs = [_scan_inputs(x, w, None, None) for w in weights.directions]
        ys = scan_directions(inputs, [w.reverse for w in weights.directions], dt_softplus=True)
        _project_out(ys[::2], z, weights, out, accumulate=add)
        return out

    out = residual.clone() if add else torch.empty_like(residual)
    cuts = [slice(start, start + chunk) for start in range(0, length, chunk)]
    # Where both directions convolve in reading order, the backward one needs the forward halos.
    halos: list[Tensor | None] = []
    for w in weights.directions:
        h = halo = None
        for i in range(len(cuts)) if not w.reverse else reversed(range(len(cuts))):
            if not w.reverse:
                halos.append(halo)
            elif not w.conv_reverse:
                halo = halos[i]
            y, z, h, halo = _mix(residual[:, cuts[i]], weights, w, h, halo)
            _project_out([y], z, weights, out[:, cuts[i]], accumulate=add or w.reverse)
    return out


def fused_step(
    residual: Tensor,
    weights: BlockWeights,
    h: Tensor | None,
    halo: Tensor | None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix one chunk in one direction.

    Parameters
    ----------
    residual, weights
        As in `fused_block`.
    h, halo
        As the neighbouring chunk returned them, shapes (b, d, n) and (b, k - 1, d); None where the
        direction begins. A convolution in reading order needs the forward halo in both directions.
    reverse
        The backward direction.

    Returns
    -------
    added
        This direction's share of what the block adds to the residual stream, shape (b, l, m).
    h, halo
        For the next chunk.
    """
    direction = weights.directions[reverse]
    y, z, h, halo = _mix(residual, weights, direction, h, halo)
    added = torch.empty_like(residual)
    _project_out([y], z, weights, added, accumulate=False)
    return added, h, halo


def _mix(
    residual: Tensor,
    weights: BlockWeights,
    direction: DirectionWeights,
    h: Tensor | None,
    halo: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y and z of a chunk, and h and halo for the next one."""
    x, z = _project_in(residual, weights).chunk(2, -1)
    inputs = _scan_inputs(x, direction, h, halo)
    y, h = scan_directions([inputs], [direction.reverse], dt_softplus=True)
    return y, z, h, _next_halo(x, direction, halo)


def _project_in(residual: Tensor, weights: BlockWeights) -> Tensor:
    xz: Tensor = norm_project(
        residual, weights.norm_weight, weights.norm_bias, weights.in_proj, weights.eps
    )
    return xz


def _scan_inputs(x: Tensor, w: DirectionWeights, h: Tensor | None, halo: Tensor | None) -> Inputs:
    u, dt, BC = conv_project(x, halo, w.taps, w.conv_bias, w.x_proj, w.dt_proj, w.conv_reverse)
    B, C = BC.chunk(2, -1)
    return Inputs(u, dt, w.A, B, C, w.D, None, w.dt_bias, h)


def _project_out(
    ys: list[Tensor], z: Tensor, weights: BlockWeights, out: Tensor, *, accumulate: bool
) -> None:
    y_reverse = ys[1] if len(ys) == 2 else None
    scale, gamma = weights.scale, weights.gamma
    gate_project(ys[0], y_reverse, z, weights.out_proj, scale, gamma, out, accumulate)


def _next_halo(x: Tensor, w: DirectionWeights, halo: Tensor | None) -> Tensor:
    reach = w.taps.shape[1] - 1
    if halo is None:
        halo = x.new_zeros(len(x), reach, x.shape[2])
    if w.conv_reverse:
        return torch.cat([x[:, :reach], halo], 1)[:, :reach].clone()
    seen = torch.cat([halo, x[:, max(0, x.shape[1] - reach) :]], 1)
    return seen[:, seen.shape[1] - reach :].clone()
