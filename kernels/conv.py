"""The short causal convolution in front of the scan."""

from __future__ import annotations

from torch import Tensor

from gigavim.kernels import c_conv, torch_conv
from gigavim.kernels.packed import count_sequences
from gigavim.kernels.scan import backend_name


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
    one returned, gives the same result as convolving it whole. It runs in C where the scan does
    (`scan_backend`), elsewhere, and with more than 16 taps, in plain PyTorch.

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
    batch, _, channels = x.shape
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

    if backend_name(x.device, x.dtype) == "c" and reach < c_conv.MOST_TAPS:
        return c_conv.causal_conv(x, weight, bias, halo, reverse, offsets)
    return torch_conv.causal_conv(x, weight, bias, halo, reverse, offsets)
