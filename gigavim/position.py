"""Where a patch is, told to its token: on a grid of any size, from its row and column alone.

What is learned on a square training grid is stretched over any other, so that a place is told as a
share of the image, or repeated, so that it is told within a window; sines and cosines of the row
and column need no training grid, and those of the day of the year tell when an image was taken.
Nothing here holds a row for each patch of a grid, so the positions of part of a grid are those that
the whole has there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

YEAR_DAYS = 365.25
SEASON_WAVES = 4
"""Numbers that tell the day of the year."""
ROWS_AT_ONCE = 4096
"""Positions evaluated together, so that working memory does not depend on their number."""


def positions_on(table: Tensor, rows: int, columns: int, index: Tensor | None = None) -> Tensor:
    """Evaluate a learned table on a grid of any size and shape.

    The table covers the whole grid, whatever its size: bicubic, ``align_corners=False``, as
    `torch.nn.functional.interpolate` does, but only at the places asked for. On the grid it was
    trained on the table is taken as it is.

    Parameters
    ----------
    table
        One row a patch of the square training grid, row-major, shape (g * g, D).
    rows, columns
        Size of the grid asked for.
    index
        Row and column of each place, integer, shape (n, 2); by default the whole grid, row-major.

    Returns
    -------
    position
        Shape (n, D), of the table's dtype.
    """
    side = math.isqrt(len(table))
    if index is None:
        index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    index = index.to(table.device, torch.long)
    if (rows, columns) == (side, side):
        return table[index[:, 0] * side + index[:, 1]]
    across, down = _taps(table, columns), _taps(table, rows)
    parts = []
    for part in torch.split(index, ROWS_AT_ONCE):
        weights = down[part[:, 0], :, None] * across[part[:, 1], None, :]  # (n, g, g)
        parts.append(weights.flatten(1) @ table)
    return torch.cat(parts) if parts else table[:0]


def periodic_positions(table: Tensor, index: Tensor) -> Tensor:
    """Repeat a learned table over a grid, a window of the training grid's size at a time.

    Parameters
    ----------
    table
        One row a patch of the square training grid, row-major, shape (g * g, D).
    index
        Row and column of each patch, integer, shape (n, 2).

    Returns
    -------
    position
        Shape (n, D), of the table's dtype.
    """
    side = math.isqrt(len(table))
    row, column = (index.to(table.device, torch.long) % side).unbind(1)
    return table[row * side + column]


def sincos_positions(index: Tensor, width: int) -> Tensor:
    """Return sines and cosines of columns and rows, counted in patches that the model sees.

    As masked autoencoders have them (He et al. 2022, arXiv 2111.06377, `pos_embed.py`, after
    Vaswani et al. 2017, arXiv 1706.03762): the first half of the numbers tells the column and the
    second the row, each half the sines, then the cosines of the place times 10000^(-4k / D). A
    patch at the model's spacing has one size, so places are physical, and those of a patch do not
    depend on how large the image is.

    Parameters
    ----------
    index
        Row and column of each patch, integer, shape (n, 2).
    width
        D, a multiple of four.

    Returns
    -------
    position
        Shape (n, D), float64.
    """
    quarter = width // 4
    # In float64: in float32 the fast waves of patch 100,000 would be off by a hundredth.
    frequency = 10000.0 ** (
        -torch.arange(quarter, dtype=torch.float64, device=index.device) / quarter
    )
    angle = index.flip(1)[:, :, None] * frequency  # (n, 2, D / 4), columns first
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)


def season_waves(days: Tensor) -> Tensor:
    """Return sine and cosine of the day of the year, and of twice it.

    So that the last day of a year is next to the first of the next one, and winter as far from
    summer as spring from autumn.

    Parameters
    ----------
    days
        1 for the first of January, NaN where it is not known, shape (...).

    Returns
    -------
    waves
        Shape (..., 4), float64; 0 where the day is not known.
    """
    angle = days.double()[..., None] * (2 * math.pi / YEAR_DAYS)
    harmonics = torch.cat([angle, 2 * angle], -1)
    return torch.cat([harmonics.sin(), harmonics.cos()], -1).nan_to_num(0.0)


def _taps(table: Tensor, length: int) -> Tensor:
    """Return the weights of the g trained places at `length` new ones, shape (length, g)."""
    side = math.isqrt(len(table))
    one_hot = torch.eye(side, dtype=table.dtype, device=table.device)[None, None]
    return nn.functional.interpolate(one_hot, (length, side), mode="bicubic", align_corners=False)[
        0, 0
    ]


def resize_as_upstream(table: Tensor, side: int, *, class_rows: int = 1) -> Tensor:
    """Resize a whole table as hustvl/Vim does before fine-tuning, to start from the same weights.

    It takes the first rows for the class tokens even where the class token sits in the middle, so
    it shifts half of the grid by one place and smears the class row into it.
    `VisionMamba.position_for` is the right way to run trained weights.

    Parameters
    ----------
    table
        Shape (1, class_rows + g * g, D).
    side
        Of the square grid asked for.
    class_rows
        How many rows at the front are kept as they are.

    Returns
    -------
    table
        Shape (1, class_rows + side * side, D).
    """
    kept, rest = table[0, :class_rows], table[0, class_rows:]
    if math.isqrt(len(rest)) ** 2 != len(rest):
        raise ValueError(f"{len(rest)} rows are not a square grid")
    return torch.cat([kept, positions_on(rest, side, side)])[None]


class Rope(nn.Module):
    """Rotary positions: the pairs of channels turned by an angle for each patch.

    Half of the channels turn with the row, half with the column (Su et al. 2021, arXiv 2104.09864,
    along two axes). Places are scaled so that each axis of a grid spans the 14 patches of a 224 px
    image, as hustvl/Vim does on square grids of any size, and as `positions_on` stretches tables.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        whole = torch.cartesian_prod(torch.arange(side), torch.arange(side)).view(-1, 2)
        angle = _angles(whole, (side, side), width, torch.float32)
        self.register_buffer("freqs_cos", angle.cos())
        self.register_buffer("freqs_sin", angle.sin())

    def forward(
        self, tokens: Tensor, index: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Turn tokens by their places.

        Parameters
        ----------
        tokens
            Shape (..., l, D).
        index
            Row and column of each token, integer, shape (l, 2); by default those of the whole
            training grid, row-major.
        grid
            Rows and columns of the grid that `index` counts in; by default the training grid, whose
            angles are among the weights.

        Raises
        ------
        ValueError
            If there are more or fewer tokens than places.
        """
        cos, sin = self.freqs_cos, self.freqs_sin
        if index is not None:
            index = index.to(cos.device, torch.long)
            if grid is None or grid == (self.side, self.side):
                rows = index[:, 0] * self.side + index[:, 1]
                cos, sin = cos[rows], sin[rows]
            else:
                angle = _angles(index, grid, tokens.shape[-1], cos.dtype)
                cos, sin = angle.cos(), angle.sin()
        if tokens.shape[-2] != len(cos):
            raise ValueError(
                f"rotary positions are known for {len(cos)} tokens, not for {tokens.shape[-2]}; "
                "give the row and column of each"
            )
        a, b = tokens[..., 0::2], tokens[..., 1::2]
        turned = torch.stack([-b, a], -1).flatten(-2)
        return tokens * cos + turned * sin


def _angles(index: Tensor, grid: tuple[int, int], width: int, dtype: torch.dtype) -> Tensor:
    """Return by how much each pair of channels turns, twice each, shape (n, D)."""
    quarter = width // 4
    frequency = 10000 ** (-torch.arange(quarter, dtype=dtype, device=index.device) / quarter)
    size = torch.tensor(grid, device=index.device)
    place = index.to(dtype) / size * 14
    return (place[:, :, None] * frequency).repeat_interleave(2, -1).flatten(1)
