"""The definitions of what a Vim block does around its scans, that the kernels must meet.

Plain PyTorch, in the dtype of the arguments. Sizes: ``m`` width of a token, ``d`` channels of the
scan, ``n`` states, ``r`` rank of the step sizes, ``k`` taps; and ``b`` and ``l`` as everywhere.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm, linear, rms_norm, silu

from gigavim.kernels.conv import causal_conv


def norm_project(
    tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    """Norm each token, then map it by ``weight``, (o, m); shapes (b, l, m) to (b, l, o).

    With a bias the norm is LayerNorm, without it RMSNorm.
    """
    if norm_bias is None:
        return linear(rms_norm(tokens, norm_weight.shape, norm_weight, eps), weight)
    return linear(layer_norm(tokens, norm_weight.shape, norm_weight, norm_bias, eps), weight)


def conv_project(
    x: Tensor,
    halo: Tensor | None,
    taps: Tensor,
    bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve and take SiLU, then project what the scan takes at each token.

    Parameters
    ----------
    x, halo, taps, bias, reverse
        As in `gigavim.kernels.causal_conv`: (b, l, d), (b, k - 1, d), (d, k), (d,).
    x_proj
        Shape (r + 2 n, d).
    dt_proj
        Shape (d, r).

    Returns
    -------
    u
        Input of the scan, (b, l, d).
    dt
        Its step sizes before bias and softplus, (b, l, d).
    BC
        Its weights B, then C, (b, l, 2 n).
    """
    u, _ = causal_conv(x, taps, bias, halo=halo, reverse=reverse)
    rank = dt_proj.shape[1]
    low, BC = linear(u, x_proj).tensor_split([rank], -1)
    return u, linear(low, dt_proj), BC


def gate_project(
    y: Tensor,
    y_reverse: Tensor | None,
    z: Tensor,
    weight: Tensor,
    scale: float,
    gamma: Tensor | None,
) -> Tensor:
    """Gate the sum of both directions by ``silu(z)``, map it by `weight`, (m, d), and scale it.

    Shapes (b, l, d) to (b, l, m).
    """
    total = y if y_reverse is None else y + y_reverse
    added = linear(total * silu(z), weight) * scale
    return added if gamma is None else added * gamma
