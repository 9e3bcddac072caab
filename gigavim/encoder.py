"""Vision Mamba (Vim), bottom-up: mixer, block, encoder.

Zhu et al. 2024, arXiv 2401.09417, as published at github.com/hustvl/Vim; parameters have the
published names, so published weights load as they are. Letters: ``b`` batch, ``l`` tokens, ``D``
width of a token, ``E`` inner channels, ``N`` states of a channel, ``R`` rank of the step sizes,
``P`` side of a patch.

The encoder is split in two: `VisionMamba.embed` turns each patch into a token by itself, so pixels
stream through it, and `VisionMamba.mix` lets all tokens of a sequence see each other. Where a
sequence is too long to be mixed at once, `Block.step` mixes one chunk in one direction, from one
`DirectionState` to the next; the forward direction takes chunks in order, the backward one in
reverse order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig
from gigavim.kernels import causal_conv, selective_scan
from gigavim.position import Rope, positions_on

__all__ = ["Block", "DirectionState", "Features", "Mixer", "VisionMamba", "VisionMambaConfig"]


class DirectionState(NamedTuple):
    """What one direction of one block carries from chunk to chunk; None where it begins."""

    h: Tensor | None = None
    """State of the scan, shape (b, E, N)."""
    halo: Tensor | None = None
    """The tokens that the convolution still sees, shape (b, taps - 1, E)."""


class Direction(NamedTuple):
    """The parameters of one direction of a mixer."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor
    D: Tensor


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

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix a whole sequence, shape (b, l, D)."""
        x, z = self.in_proj(tokens).chunk(2, -1)  # (b, l, E) each
        y, _ = self._scan(x, z, DirectionState(), reverse=False)
        if self.directions != "forward":
            y = y + self._scan(x, z, DirectionState(), reverse=True)[0]
        return self._project(y)

    def step(
        self, tokens: Tensor, state: DirectionState, *, reverse: bool
    ) -> tuple[Tensor, DirectionState]:
        """Mix a chunk in one direction; what the two directions return adds up to `forward`."""
        x, z = self.in_proj(tokens).chunk(2, -1)
        y, state = self._scan(x, z, state, reverse=reverse)
        return self._project(y), state

    def _scan(
        self, x: Tensor, z: Tensor, state: DirectionState, *, reverse: bool
    ) -> tuple[Tensor, DirectionState]:
        """Convolve, scan and gate in one direction, shape (b, l, E)."""
        conv, x_proj, dt_proj, A_log, D = self._direction(reverse)
        # v1 convolves in reading order for both directions.
        conv_reverse = reverse and self.directions == "v2"
        u, halo = causal_conv(
            x, conv.weight[:, 0], _present(conv.bias), halo=state.halo, reverse=conv_reverse
        )
        dt, B, C = x_proj(u).split(self.split, -1)  # (b, l, R), (b, l, N), (b, l, N)
        dt = nn.functional.linear(dt, dt_proj.weight)  # the scan adds the bias, in float32
        A = -torch.exp(A_log)
        y, h = selective_scan(
            u, dt, A, B, C, D, z, dt_proj.bias, dt_softplus=True, h=state.h, reverse=reverse
        )
        return y, DirectionState(h, halo)

    def _direction(self, reverse: bool) -> Direction:
        if reverse and self.directions == "v2":
            return Direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        A_log = self.A_b_log if reverse else self.A_log
        return Direction(self.conv1d, self.x_proj, self.dt_proj, A_log, self.D)

    def _project(self, y: Tensor) -> Tensor:
        out: Tensor = self.out_proj(y if self.scale == 1.0 else y * self.scale)
        return out * self.gamma if hasattr(self, "gamma") else out


class Block(nn.Module):
    """Norm, then mixer; the encoder adds what a block returns to the residual stream."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.mixer = Mixer(config)
        self.norm = _norm(config)

    def forward(self, residual: Tensor, chunk: int | None = None) -> Tensor:
        """Return what the block adds to the residual stream, shape (b, l, D).

        With `chunk`, memory beyond input and output depends on `chunk` tokens alone.
        """
        length = residual.shape[1]
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk is at least one token, not {chunk}")
        if chunk is None or chunk >= length:
            out: Tensor = self.mixer(self.norm(residual))
            return out
        cuts = [slice(start, start + chunk) for start in range(0, length, chunk)]
        added = torch.empty_like(residual)
        state, halos = DirectionState(), []
        for cut in cuts:
            halos.append(state.halo)
            added[:, cut], state = self.step(residual[:, cut], state)
        if self.mixer.directions == "forward":
            return added
        state = DirectionState()
        for cut, halo in zip(reversed(cuts), reversed(halos), strict=True):
            if self.mixer.directions == "v1":
                state = state._replace(halo=halo)
            backward, state = self.step(residual[:, cut], state, reverse=True)
            added[:, cut] += backward
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
        return self.mixer.step(self.norm(residual), state, reverse=reverse)


class PatchEmbedding(nn.Module):
    """One linear map from the pixels of a patch to a token, published as a convolution."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.bands, config.width, config.patch, config.stride)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches, shape (..., P, P, band), as tokens, shape (..., D)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P * P * band)
        return nn.functional.linear(patches.flatten(-3), weight, self.proj.bias)


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoder makes of a sequence."""

    tokens: Tensor
    """One feature a patch, in the order given, without class tokens, shape (b, l, D)."""
    vector: Tensor
    """The whole sequence: its class token, or pooled, shape (b, D)."""


class VisionMamba(nn.Module):
    """The encoder and, where it has classes, its linear classifier `head`.

    Tokens, weights and residual stream are float32 (float64 after ``.double()``); for half
    precision run it under `torch.autocast`, which leaves norms, residual stream and scan states in
    float32.
    """

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.config = config
        class_tokens = len(config.class_index(0))
        if config.class_token == "double":
            self.cls_token_head = nn.Parameter(torch.empty(1, 1, config.width))
            self.cls_token_tail = nn.Parameter(torch.empty(1, 1, config.width))
        elif class_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        if config.position == "learned":
            self.pos_embed = nn.Parameter(
                torch.empty(1, config.side**2 + class_tokens, config.width)
            )
        self.patch_embed = PatchEmbedding(config)
        self.head = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        if config.rope != "none":
            self.rope = Rope(config.image_size // config.patch, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_f = _norm(config)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        # LeCun normal; 0.8796 is the standard deviation of a unit normal cut off at two.
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight)
        self.patch_embed.proj.weight.div_(0.87962566103423978 * math.sqrt(fan_in))
        nn.init.zeros_(_present(self.patch_embed.proj.bias))
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def embed(self, patches: Tensor) -> Tensor:
        """Turn patches into tokens, each by itself and without its position.

        Parameters
        ----------
        patches
            Normalised pixels, shape (..., P, P, band).

        Returns
        -------
        tokens
            Shape (..., D).
        """
        tokens: Tensor = self.patch_embed(patches)
        return tokens

    def position_for(self, rows: int, columns: int, index: Tensor | None = None) -> Tensor | None:
        """Return the position embedding of patches of a grid of any size and shape.

        The table, class row left out, is stretched over the grid (bicubic); on the grid of the
        training images it is taken as it is.

        Parameters
        ----------
        index
            Row and column of each patch, integer, shape (n, 2); by default all, row-major.

        Returns
        -------
        position
            Shape (n, D); None where the model has no learned positions.
        """
        if self.config.position == "none":
            return None
        patches = self.config.side**2
        place = self.config.class_index(patches)
        table = _without_class(self.pos_embed, place[0], patches) if place else self.pos_embed
        return positions_on(table[0], rows, columns, index)

    def mix(
        self, tokens: Tensor, position: Tensor | None = None, *, chunk: int | None = None
    ) -> Features:
        """Let all tokens of each sequence see each other.

        Patches that cannot be read are left out by leaving out their rows of `tokens` and
        `position`: the other ones keep their positions, and the middle class token goes after half
        of those that remain.

        Parameters
        ----------
        tokens
            What `embed` returned, in the order of the sequence, shape (b, l, D).
        position
            What `position_for` returned, shape (l, D) or (b, l, D).
        chunk
            Tokens that a block mixes at once; by default all. The result is the same. Without
            gradients, memory is that of the arguments, two more arrays like `tokens`, and what
            `chunk` tokens need.
        """
        if position is not None:
            tokens = tokens + position
        hidden = self._with_class_tokens(tokens, position is not None)
        del tokens  # the caller may have let go of it
        residual: Tensor | None = None
        for layer in self.layers:
            if self.config.rope != "none":
                hidden = self.rope(hidden)
            if residual is not None and self.config.rope == "tokens and residual":
                residual = self.rope(residual)
            residual = _added(residual, hidden)
            hidden = layer(residual, chunk)
        residual = _added(residual, hidden)
        del hidden
        sequence = _in_chunks(self.norm_f, residual, chunk)
        del residual
        return self._read_out(sequence)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Parameters
        ----------
        images
            Normalised pixels, shape (b, band, height, width).

        Returns
        -------
        logits
            Shape (b, classes); the vectors (b, D) where the model has no classes.
        """
        patch, stride = self.config.patch, self.config.stride
        patches = images.unfold(2, patch, stride).unfold(
            3, patch, stride
        )  # (b, band, row, col, P, P)
        rows, columns = patches.shape[2:4]
        tokens = self.embed(patches.permute(0, 2, 3, 4, 5, 1).flatten(1, 2))
        logits: Tensor = self.head(self.mix(tokens, self.position_for(rows, columns)).vector)
        return logits

    def class_rows(self, *, positioned: bool) -> Tensor:
        """Return the class tokens, with or without their learned positions, (class tokens, D)."""
        if self.config.class_token == "double":
            rows = torch.cat([self.cls_token_head[0], self.cls_token_tail[0]])
        else:
            rows = self.cls_token[0]
        index = list(self.config.class_index(self.config.side**2))
        learned = positioned and self.config.position == "learned"
        return rows + self.pos_embed[0, index] if learned else rows

    def _with_class_tokens(self, tokens: Tensor, positioned: bool) -> Tensor:
        """Return a new sequence, shape (b, l + class tokens, D), with these at their places."""
        index = self.config.class_index(tokens.shape[1])
        if not index:
            return tokens if positioned else tokens.clone()
        rows = self.class_rows(positioned=positioned).expand(len(tokens), -1, -1)
        place = index[0]  # the second class token, if there is one, comes last
        return torch.cat([tokens[:, :place], rows[:, :1], tokens[:, place:], rows[:, 1:]], 1)

    def _read_out(self, sequence: Tensor) -> Features:
        """Tell the class tokens from the others."""
        length = sequence.shape[1] - len(self.config.class_index(0))
        index = self.config.class_index(length)
        if not index:
            vector = sequence.mean(1) if self.config.pool == "mean" else sequence[:, -1]
            return Features(sequence, vector)
        vector = sequence[:, list(index)].mean(1)
        return Features(_without_class(sequence, index[0], length), vector)


def _without_class(sequence: Tensor, place: int, length: int) -> Tensor:
    """Return the `length` other rows of a sequence whose (first) class token is at `place`."""
    return torch.cat([sequence[:, :place], sequence[:, place + 1 : length + 1]], 1)


def _norm(config: VisionMambaConfig) -> nn.Module:
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.width, eps=1e-5)


def _added(residual: Tensor | None, hidden: Tensor) -> Tensor:
    """Add to the residual stream, in its own memory where no gradient needs the old one."""
    if residual is None:
        return hidden
    return residual + hidden if torch.is_grad_enabled() else residual.add_(hidden)


def _in_chunks(function: Callable[[Tensor], Tensor], tokens: Tensor, chunk: int | None) -> Tensor:
    """Apply a function of single tokens to `chunk` of them at a time."""
    if chunk is None:
        return function(tokens)
    out = torch.empty_like(tokens)
    for start in range(0, tokens.shape[1], chunk):
        cut = slice(start, start + chunk)
        out[:, cut] = function(tokens[:, cut])
    return out


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None  # PyTorch types the bias of a layer as optional
    return bias
