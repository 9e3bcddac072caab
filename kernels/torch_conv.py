"""The convolution in plain PyTorch: the definition, and what runs where there is no C library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, silu

from gigavim.kernels.packed import check_offsets


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, reverse: bool, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.causal_conv`."""
    length, channels = x.shape[1:]
    reach = halo.shape[1]
    if offsets is None:
        padded, kept = torch.cat([x, halo] if reverse else [halo, x], 1), None
        next_halo = padded[:, :reach] if reverse else padded[:, length:]
    else:
        padded, next_halo, kept = _pad_each(x, halo, offsets, reverse)
    # A copy: as a view, the few tokens of the halo would keep the whole chunk in memory.
    next_halo = next_halo.clone()
    if length == 0:
        return x.clone(), next_halo
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    taps = weight.flip(1) if reverse else weight
    # As an image of height 1 in channels-last layout, so that nothing is transposed in memory.
    image = padded[:, None].permute(0, 3, 1, 2)
    y = conv2d(image, taps[:, None, None], bias, groups=channels).permute(0, 2, 3, 1)[:, 0]
    return silu(y if kept is None else y[:, kept]), next_halo


def _pad_each(
    x: Tensor, halo: Tensor, offsets: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad sequences end to end each with its halo.

    Return them padded, the next halos, and which of the outputs see one sequence alone.
    """
    check_offsets(offsets, x.shape[1])
    reach = halo.shape[1]
    lengths = offsets.diff()
    parts = zip(x[0].tensor_split(offsets[1:-1].tolist()), halo, strict=True)
    padded = [torch.cat([part, edge] if reverse else [edge, part]) for part, edge in parts]
    next_halo = [part[:reach] if reverse else part[len(part) - reach :] for part in padded]
    sequence = torch.arange(len(halo), device=x.device).repeat_interleave(lengths)
    kept = torch.arange(x.shape[1], device=x.device) + reach * sequence
    return torch.cat(padded)[None], torch.stack(next_halo), kept
