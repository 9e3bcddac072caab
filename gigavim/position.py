"""Where a patch is, told to its token: learned tables stretched over any grid, and rotations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
    """Rotary positions on a square grid: the pairs of channels turned by an angle for each patch.

    Half of the channels turn with the row, half with the column (Su et al. 2021, arXiv 2104.09864,
    along two axes).
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        # Places are scaled to the 14 patches of a 224 px image.
        place = torch.arange(side) / side * 14
        quarter = width // 4
        turn = place[:, None] * 10000 ** (-torch.arange(quarter) / quarter)
        turn = turn.repeat_interleave(2, -1)  # (side, D / 2)
        rows = turn[:, None].expand(-1, side, -1)
        columns = turn[None].expand(side, -1, -1)
        angle = torch.cat([rows, columns], -1).flatten(0, 1)  # (side * side, D)
        self.register_buffer("freqs_cos", angle.cos())
        self.register_buffer("freqs_sin", angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn the tokens of a whole grid, row-major, shape (b, l, D).

        Raises
        ------
        ValueError
            If there are more or fewer tokens than the grid has patches.
        """
        if tokens.shape[1] != len(self.freqs_cos):
            raise ValueError(
                f"rotary positions were made for {len(self.freqs_cos)} tokens, not for "
                f"{tokens.shape[1]}; run this model on whole tiles of its training size"
            )
        a, b = tokens[..., 0::2], tokens[..., 1::2]
        turned = torch.stack([-b, a], -1).flatten(-2)
        return tokens * self.freqs_cos + turned * self.freqs_sin
