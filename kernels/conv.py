"""The short causal convolution in front of the scan."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, silu


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    halo: Tensor | None = None,
    reverse: bool = False,
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
        shape (b, k - 1, d). None at the true end of the sequence, where zeros take their place.
    reverse
        Look at the tokens after the current one instead of those before it: the mirror image.

    Returns
    -------
    y
        Output, shape (b, l, d), of x's dtype.
    halo
        What the next chunk needs (the previous one if `reverse`), shape (b, k - 1, d).

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    batch, length, channels = x.shape
    reach = weight.shape[-1] - 1
    if weight.shape != (channels, reach + 1) or bias.shape != (channels,):
        raise ValueError(
            f"causal_conv needs weight ({channels}, k) and bias ({channels},) "
            f"for x {tuple(x.shape)}, not {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if halo is None:
        halo = x.new_zeros(batch, reach, channels)
    elif halo.shape != (batch, reach, channels):
        raise ValueError(f"halo must be {(batch, reach, channels)}, not {tuple(halo.shape)}")

    padded = torch.cat([x, halo] if reverse else [halo, x], 1)
    next_halo = padded[:, :reach] if reverse else padded[:, length:]
    # A copy: as a view, the few tokens of the halo would keep the whole chunk in memory.
    next_halo = next_halo.clone()
    if length == 0:
        return x.clone(), next_halo
    taps = weight.flip(1) if reverse else weight
    # As an image of height 1 in channels-last layout, so that nothing is transposed in memory.
    image = padded[:, None].permute(0, 3, 1, 2)
    y = conv2d(image, taps[:, None, None], bias, groups=channels)
    return silu(y.permute(0, 2, 3, 1)[:, 0]), next_halo
