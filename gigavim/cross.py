"""VMamba's block: tokens scanned in four directions, along the rows and columns of their grid.

Liu et al. 2024, arXiv 2401.10166 (SS2D), as published at github.com/MzeroMiko/VMamba; parameters
have the published names. Letters: ``b`` batch, ``l`` tokens, ``D`` width of a token, ``E`` inner
channels, ``N`` states of a channel, ``R`` rank of the step sizes.

The grid may have holes: a sequence holds the patches that are read, and both the scans and the
3 x 3 convolution pass over the others. On a full grid this is what VMamba computes. The sequence
stays in row-major order; only what has been convolved is brought in column-major order, once.
Directions are numbered as published: 0 along rows, 1 along columns, 2 and 3 the same backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig
from gigavim.kernels import selective_scan
from gigavim.mixer import norm_of

DIRECTIONS = 4


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of a row-major sequence are on their grid."""

    cell: Tensor
    """Number of each token's cell in a grid with an empty column at its right, rising, (l,)."""
    stride: int
    """From a cell to the one below."""
    columns: Tensor
    """The tokens in column-major order, shape (l,)."""

    @classmethod
    def of(cls, index: Tensor) -> Places:
        """Find the order of columns.

        Parameters
        ----------
        index
            Row and column of each token, integer, shape (l, 2).

        Raises
        ------
        ValueError
            If the tokens are not in row-major order.
        """
        row, column = index.long().unbind(1)
        stride = int(column.max()) + 2 if len(index) else 1
        cell = row * stride + column
        if bool((cell.diff() <= 0).any()):
            raise ValueError("cross blocks take patches row by row, each from the left, each once")
        # Tokens are in order of rows already, and stay so within a column.
        return cls(cell, stride, torch.argsort(column, stable=True))

    @cached_property
    def rank(self) -> Tensor:
        """The place of each token in column-major order, shape (l,)."""
        rank = torch.empty_like(self.columns)
        rank[self.columns] = torch.arange(len(rank), device=rank.device)
        return rank

    @cached_property
    def neighbours(self) -> Tensor:
        """`neighbours_of` all tokens."""
        return self.neighbours_of(0, len(self.cell))

    def neighbours_of(self, start: int, stop: int) -> Tensor:
        """Return the tokens around each of some, row by row, -1 for none, shape (9, stop - start).

        The token itself is the one in the middle.
        """
        step = torch.arange(-1, 2, device=self.cell.device)
        offset = (step[:, None] * self.stride + step).view(9, 1)
        wanted = self.cell[start:stop] + offset
        found = torch.searchsorted(self.cell, wanted).clamp_(max=max(0, len(self.cell) - 1))
        return torch.where(self.cell[found] == wanted, found, -1)


class SS2D(nn.Module):
    """The mixer of a cross block: ``v05_noz`` of VMamba, or with a gate its ``v0``."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        D, E, N, R = config.width, config.inner, config.state, config.rank
        self.split = [R, N, N]
        self.inner = E
        self.in_proj = nn.Linear(D, 2 * E if config.gate else E, bias=False)
        self.conv2d = nn.Conv2d(E, E, 3, padding=1, groups=E, bias=config.gate)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, R + 2 * N, E))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, E, R))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, E))
        decay = torch.log(torch.arange(1, N + 1, dtype=torch.float32))
        self.A_logs = nn.Parameter(decay.repeat(DIRECTIONS * E, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * E))
        self.out_norm = nn.LayerNorm(E)
        self.out_proj = nn.Linear(E, D, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as the published training does."""
        nn.init.uniform_(self.x_proj_weight, -(self.inner**-0.5), self.inner**-0.5)
        rank = self.dt_projs_weight.shape[-1]
        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        step = torch.empty_like(self.dt_projs_bias)
        step = step.uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(1e-4)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is step
        for layer in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def project(self, tokens: Tensor) -> Tensor:
        """Return what is convolved, shape (b, l, E)."""
        x = nn.functional.linear(tokens, self.in_proj.weight[: self.inner])
        return x.to(self.conv2d.weight.dtype)

    def convolve(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """Weigh each token with those around it.

        Parameters
        ----------
        x
            What `project` returned and a row of zeros behind it, shape (b, m + 1, E).
        neighbours
            Rows of `x` around each token, -1 for none: for the zeros, shape (9, l).

        Returns
        -------
        u
            Shape (b, l, E).
        """
        taps = self.conv2d.weight.flatten(1).T  # (9, E)
        y = x[:, neighbours[0]] * taps[0]
        for around, tap in zip(neighbours[1:], taps[1:], strict=True):
            y = torch.addcmul(y, x[:, around], tap)
        return nn.functional.silu(y if self.conv2d.bias is None else y + self.conv2d.bias)

    def scan(self, u: Tensor, direction: int, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scan in one direction what `convolve` returned, in row- or column-major order.

        Parameters
        ----------
        h
            State that the chunk before left (after for the directions 2 and 3), shape (b, E, N).

        Returns
        -------
        y, h
            Shapes (b, l, E) and (b, E, N).
        """
        of = slice(direction * self.inner, (direction + 1) * self.inner)
        parts = nn.functional.linear(u, self.x_proj_weight[direction])
        dt, B, C = torch.split(parts, self.split, -1)  # (b, l, R), (b, l, N), (b, l, N)
        dt = nn.functional.linear(dt, self.dt_projs_weight[direction])
        return selective_scan(
            u, dt, -torch.exp(self.A_logs[of]), B, C, self.Ds[of], None,
            self.dt_projs_bias[direction], dt_softplus=True, h=h, reverse=direction >= 2,
        )  # fmt: skip

    def read_out(self, y: Tensor, tokens: Tensor) -> Tensor:
        """Return what the sum of all scans adds to the tokens, shape (b, l, D).

        Parameters
        ----------
        tokens
            What `project` was given, for the gate.
        """
        y = self.out_norm(y)
        gate = self.in_proj.weight[self.inner :]
        if len(gate):
            y = y * nn.functional.silu(nn.functional.linear(tokens, gate))
        out: Tensor = self.out_proj(y)
        return out


class Mlp(nn.Module):
    """Two layers with a GELU between, each token by itself."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return as many numbers for each token, shape (..., D)."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return out


class CrossBlock(nn.Module):
    """Norm and SS2D, norm and MLP, each with its residual.

    It loads the weights of a VMamba block, `VSSBlock`, under their own names, whichever of VMamba's
    layouts they have. So the blocks of stage 2 of a published model are loaded in an encoder of
    their depth and width by::

        stage = "layers.2.blocks."
        encoder.layers.load_state_dict(
            {name.removeprefix(stage): w for name, w in weights.items() if name.startswith(stage)}
        )
    """

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.norm = norm_of(config)
        self.op = SS2D(config)
        self.has_mlp = config.mlp_ratio > 0
        if self.has_mlp:
            self.norm2 = norm_of(config)
            self.mlp = Mlp(config.width, int(config.mlp_ratio * config.width))
        self.register_load_state_dict_pre_hook(_take_published)  # type: ignore[no-untyped-call]

    def forward(self, residual: Tensor, places: Places) -> Tensor:
        """Return what the block adds to the residual stream, shape (b, l, D)."""
        x = nn.functional.pad(self.op.project(self.norm(residual)), (0, 0, 0, 1))
        u = self.op.convolve(x, places.neighbours)
        y = self.op.scan(u, 0)[0] + self.op.scan(u, 2)[0]
        u = u[:, places.columns]
        across = self.op.scan(u, 1)[0] + self.op.scan(u, 3)[0]
        return self.finish(residual, y + across[:, places.rank])

    def finish(self, residual: Tensor, y: Tensor) -> Tensor:
        """Return what the block adds to the residual stream, from the sum of its scans.

        Parameters
        ----------
        residual
            The residual stream before the block, shape (b, l, D).
        y
            Shape (b, l, E).
        """
        added = self.op.read_out(y, self.norm(residual))
        if self.has_mlp:
            added = added + self.mlp(self.norm2(residual + added))
        return added


def _take_published(block: nn.Module, weights: dict[str, Any], prefix: str, *_: object) -> None:
    """Bring weights of other versions of VMamba in the layout of this one.

    Later ones name two tensors of SS2D like layers, and linear layers may be 1 x 1 convolutions.
    """
    for name in ("x_proj", "dt_projs"):
        if f"{prefix}op.{name}.weight" in weights:
            weights[f"{prefix}op.{name}_weight"] = weights.pop(f"{prefix}op.{name}.weight")
    for name, parameter in block.named_parameters():
        given = weights.get(prefix + name)
        if given is not None and given.numel() == parameter.numel():
            weights[prefix + name] = given.reshape(parameter.shape)
