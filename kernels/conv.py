"""The short causal convolution in front of the scan."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, silu

from gigavim.kernels.packed import check_offsets, count_sequences


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    halo: Tensor | None = None,
    reverse: bool = False,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own k taps along the sequence, add the bias, apply SiLU.

    A sequence may be cut anywhere: convolving its parts in order, each with the halo that the last
    one returned, gives the same result as convolving it whole.

    Parameters
    ----------
    x
        Tokens, shape (b, l, d).
    weight
        Taps, shape (d, k); the last one weighs the current token.
    bias
        Shape (d,).
    halo
        The k - 1 tokens before this chunk (after it if `reverse`), in the order of the sequence,
        shape (b, k - 1, d), or of each sequence, (sequences, k - 1, d). None at the true end of the
        sequence, where zeros take their place.
    reverse
        Look at the tokens after the current one instead of those before it: the mirror image.
    offsets
        For sequences of different lengths, end to end in a batch of one: sequence i is tokens
        ``offsets[i]`` to ``offsets[i + 1]``. Int64, shape (sequences + 1,), from 0 to l.

    Returns
    -------
    y
        Output, shape (b, l, d), of x's dtype.
    halo
        What the next chunk needs (the previous one if `reverse`), of the shape of `halo`.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the offsets fall.
    """
    batch, length, channels = x.shape
    reach = weight.shape[-1] - 1
    if weight.shape != (channels, reach + 1) or bias.shape != (channels,):
        raise ValueError(
            f"causal_conv needs weight ({channels}, k) and bias ({channels},) "
            f"for x {tuple(x.shape)}, not {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    sequences = batch if offsets is None else count_sequences(offsets, x)
    if halo is None:
        halo = x.new_zeros(sequences, reach, channels)
    elif halo.shape != (sequences, reach, channels):
        raise ValueError(f"halo must be {(sequences, reach, channels)}, not {tuple(halo.shape)}")

    if offsets is None:
        padded, kept = torch.cat([x, halo] if reverse else [halo, x], 1), None
        next_halo = padded[:, :reach] if reverse else padded[:, length:]
    else:
        padded, next_halo, kept = _pad_each(x, halo, offsets, reverse)
    # A copy: as a view, the few tokens of the halo would keep the whole chunk in memory.
    next_halo = next_halo.clone()
    if length == 0:
        return x.clone(), next_halo
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
