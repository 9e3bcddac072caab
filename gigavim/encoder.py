"""Vision Mamba (Vim): patch embedding, class tokens and positions, blocks, read-out.

Zhu et al. 2024, arXiv 2401.09417, as published at github.com/hustvl/Vim; parameters have the
published names, so published weights load as they are. Letters: ``b`` batch, ``l`` tokens, ``D``
width of a token, ``P`` side of a patch.

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

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig
from gigavim.cross import CrossBlock, Places
from gigavim.mixer import Block, DirectionState, Mixer, norm_of
from gigavim.position import (
    SEASON_WAVES,
    Rope,
    periodic_positions,
    positions_on,
    season_waves,
    sincos_positions,
)

__all__ = ["Block", "DirectionState", "Features", "Mixer", "VisionMamba", "VisionMambaConfig"]


class PatchEmbedding(nn.Module):
    """One linear map from the pixels of a patch to a token, published as a convolution."""

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.bands, config.width, config.patch, config.stride)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches, shape (..., P, P, band), as tokens, shape (..., D)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P * P * band)
        tokens = nn.functional.linear(patches.flatten(-3), weight, self.proj.bias)
        return tokens.to(weight.dtype)  # the residual stream begins here


class TileEmbedding(nn.Module):
    """What a network of any kind makes of each patch, a tile then, projected to a token.

    The network is no part of the model: it is lent to it, and its weights stay in their own file.
    """

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        as_they_are = config.norm == "none"
        # Features of different networks come in different scales.
        self.norm = nn.Identity() if as_they_are else nn.LayerNorm(config.features)
        self.proj = nn.Identity() if as_they_are else nn.Linear(config.features, config.width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches, shape (..., P, P, band), as tokens, shape (..., D)."""
        if self.network is None:
            raise ValueError("this model reads features of tiles; lend it the tile encoder first")
        features: Tensor = self.network(patches.flatten(0, -4).permute(0, 3, 1, 2)).float()
        return self.project(features.view(*patches.shape[:-3], -1))

    def project(self, features: Tensor) -> Tensor:
        """Turn features, shape (..., F), into tokens, shape (..., D)."""
        tokens: Tensor = self.proj(self.norm(features))
        return tokens.float()  # the residual stream begins here


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoder makes of a sequence."""

    tokens: Tensor
    """One feature a patch, in the order given, without class tokens, shape (b, l, D)."""
    vector: Tensor
    """The whole sequence: its class token, or pooled, shape (b, D)."""


class VisionMamba(nn.Module):
    """The encoder and, where it has classes, its linear classifier `head`.

    Tokens, weights and residual stream are float32 (float64 after ``.double()``); for matrix
    products in half precision run it under `gigavim.precision.products_in`.
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
        if config.position in ("learned", "periodic"):
            self.pos_embed = nn.Parameter(
                torch.empty(1, config.side**2 + class_tokens, config.width)
            )
        self.patch_embed = (TileEmbedding if config.features else PatchEmbedding)(config)
        self.head = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        if config.rope != "none":
            self.rope = Rope(config.image_size // config.patch, config.width)
        if config.season:
            self.season_embed = nn.Linear(SEASON_WAVES, config.width, bias=False)
        block = Block if config.block == "vim" else CrossBlock
        self.layers = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm_f = nn.Identity() if config.norm == "none" else norm_of(config)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        projection = self.patch_embed.proj
        if isinstance(projection, nn.Conv2d | nn.Linear):
            # LeCun normal; 0.8796 is the standard deviation of a unit normal cut off at two.
            fan_in = projection.weight[0].numel()
            nn.init.trunc_normal_(projection.weight)
            projection.weight.div_(0.87962566103423978 * math.sqrt(fan_in))
            assert projection.bias is not None  # PyTorch types it as optional
            nn.init.zeros_(projection.bias)
        if self.config.season:
            nn.init.zeros_(self.season_embed.weight)  # what it was not taught, it does not tell
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

        A learned table, class row left out, is stretched over the grid (bicubic), or repeated where
        the model has it periodic; on the grid of the training images it is taken as it is.

        Parameters
        ----------
        index
            Row and column of each patch, integer, shape (n, 2); by default all, row-major.

        Returns
        -------
        position
            Shape (n, D); None where the model has no positions to be added.
        """
        if self.config.position == "none":
            return None
        if index is None:
            index = _whole(rows, columns)
        if self.config.position == "sincos":
            weight = next(self.parameters())
            return sincos_positions(index.to(weight.device), self.config.width).to(weight.dtype)
        patches = self.config.side**2
        place = self.config.class_index(patches)
        table = _without_class(self.pos_embed, place[0], patches) if place else self.pos_embed
        if self.config.position == "periodic":
            return periodic_positions(table[0], index)
        return positions_on(table[0], rows, columns, index)

    def season_for(self, days: Tensor) -> Tensor | None:
        """Return what is added to each token of images of some days of the year.

        Parameters
        ----------
        days
            1 for the first of January, NaN where the day is not known, shape (b,).

        Returns
        -------
        season
            Shape (b, D), 0 for a day that is not known; None where the model knows no seasons.
        """
        if not self.config.season:
            return None
        weight = self.season_embed.weight
        waves = season_waves(days.to(weight.device)).to(weight.dtype)
        season: Tensor = self.season_embed(waves)
        return season

    def mix(
        self,
        tokens: Tensor,
        position: Tensor | None = None,
        *,
        index: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        chunk: int | None = None,
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
        index
            Row and column of each token, integer, shape (l, 2): what cross blocks need, row-major,
            and rotary positions, which otherwise take the tokens for all of the training grid.
        grid
            Rows and columns of the grid that `index` counts in, for rotary positions; by default
            the training grid.
        chunk
            Projected tokens that a block holds at once; by default all, as cross blocks always do.
            The result is the same, but the others are projected twice. Without gradients, memory is
            that of the arguments, two more arrays like `tokens`, and what `chunk` tokens need.

        Raises
        ------
        ValueError
            If cross blocks have no index of all tokens, or one that is not row-major, or rotary
            positions have none and the tokens are not as many as those of the training grid.
        """
        beside = self._places(tokens, index) if self.config.block == "cross" else chunk
        if position is not None:
            tokens = tokens + position
        hidden = self.with_class_tokens(tokens, positioned=position is not None)
        del tokens  # the caller may have let go of it
        residual: Tensor | None = None
        for layer in self.layers:
            if self.config.rope != "none":
                hidden = self.rope(hidden, index, grid)
            if residual is not None and self.config.rope == "tokens and residual":
                residual = self.rope(residual, index, grid)
            residual = _added(residual, hidden)
            del hidden  # its memory is for what this block adds
            hidden = layer(residual, beside)
        residual = _added(residual, hidden)
        del hidden
        sequence = _in_chunks(self.norm_f, residual, chunk)
        del residual
        return self.read_out(sequence)

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
        index = _whole(rows, columns)
        position = self.position_for(rows, columns, index)
        mixed = self.mix(tokens, position, index=index, grid=(rows, columns))
        logits: Tensor = self.head(mixed.vector)
        return logits

    def class_rows(self, *, positioned: bool) -> Tensor:
        """Return the class tokens, with or without their learned positions, (class tokens, D)."""
        if self.config.class_token == "double":
            rows = torch.cat([self.cls_token_head[0], self.cls_token_tail[0]])
        else:
            rows = self.cls_token[0]
        index = list(self.config.class_index(self.config.side**2))
        learned = positioned and self.config.position in ("learned", "periodic")
        return rows + self.pos_embed[0, index] if learned else rows

    def with_class_tokens(self, tokens: Tensor, *, positioned: bool) -> Tensor:
        """Return a new sequence, shape (b, l + class tokens, D), with these at their places.

        With learned positions of their own where the tokens are `positioned`.
        """
        index = self.config.class_index(tokens.shape[1])
        if not index:
            return tokens if positioned else tokens.clone()
        rows = self.class_rows(positioned=positioned).expand(len(tokens), -1, -1)
        # The second class token, if there is one, comes last. Split, because the gradient of each
        # slice would be as large as all tokens.
        before, after = torch.split(tokens, [index[0], tokens.shape[1] - index[0]], 1)
        return torch.cat([before, rows[:, :1], after, rows[:, 1:]], 1)

    @staticmethod
    def _places(tokens: Tensor, index: Tensor | None) -> Places:
        if index is None or index.shape != (tokens.shape[1], 2):
            raise ValueError(
                f"cross blocks need the row and column of each of the {tokens.shape[1]} tokens"
            )
        return Places.of(index.to(tokens.device))

    def read_out(self, sequence: Tensor) -> Features:
        """Tell the class tokens from the others in a sequence, mixed and normed, (b, l, D)."""
        length = sequence.shape[1] - len(self.config.class_index(0))
        index = self.config.class_index(length)
        if not index:
            vector = sequence.mean(1) if self.config.pool == "mean" else sequence[:, -1]
            return Features(sequence, vector)
        vector = sequence[:, list(index)].mean(1)
        return Features(_without_class(sequence, index[0], length), vector)


def _whole(rows: int, columns: int) -> Tensor:
    """Return row and column of all patches of a grid, row-major, shape (rows * columns, 2)."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)


def _without_class(sequence: Tensor, place: int, length: int) -> Tensor:
    """Return the `length` other rows of a sequence whose (first) class token is at `place`."""
    sizes = [place, 1, length - place, sequence.shape[1] - length - 1]
    before, _, after, _ = torch.split(sequence, sizes, 1)
    return torch.cat([before, after], 1)


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
