"""What a Vim block does around its scans, as PyTorch operators on a GPU, without gradients.

`reference` holds the definitions; `triton_norm`, `triton_conv` and `triton_gate` a kernel each, and
how it works. Training takes plain PyTorch. Triton is imported with the first call.

An operator takes float32, bfloat16, float16 or float64 and adds up in float32 or float64. The
weights of its products say in which dtype they are computed and what passes between kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op(
    "gigavim::norm_project",
    mutates_args=(),
    schema="(Tensor tokens, Tensor norm_weight, Tensor? norm_bias, Tensor weight, float eps)"
    " -> Tensor",
)
def norm_project(
    tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    """Run `reference.norm_project`; the result has the dtype of `weight`."""
    from gigavim.kernels.block import triton_launch

    return triton_launch.norm_project(tokens, norm_weight, norm_bias, weight, eps)


@norm_project.register_fake
def _(
    tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    return weight.new_empty(*tokens.shape[:2], weight.shape[0])


@torch.library.custom_op(
    "gigavim::conv_project",
    mutates_args=(),
    schema="(Tensor x, Tensor? halo, Tensor taps, Tensor bias, Tensor x_proj, Tensor dt_proj,"
    " bool reverse) -> (Tensor, Tensor, Tensor)",
)
def conv_project(
    x: Tensor,
    halo: Tensor | None,
    taps: Tensor,
    bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `reference.conv_project`; x, x_proj and dt_proj have one dtype, BC that of the sums."""
    from gigavim.kernels.block import triton_launch

    return triton_launch.conv_project(x, halo, taps, bias, x_proj, dt_proj, reverse)


@conv_project.register_fake
def _(
    x: Tensor,
    halo: Tensor | None,
    taps: Tensor,
    bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = x_proj.shape[0] - dt_proj.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    BC = x.new_empty(*x.shape[:2], weights, dtype=dtype)
    return x.new_empty(x.shape), x.new_empty(x.shape), BC


@torch.library.custom_op(
    "gigavim::gate_project",
    mutates_args=("out",),
    schema="(Tensor y, Tensor? y_reverse, Tensor z, Tensor weight, float scale, Tensor? gamma,"
    " Tensor(a!) out, bool accumulate) -> ()",
)
def gate_project(
    y: Tensor,
    y_reverse: Tensor | None,
    z: Tensor,
    weight: Tensor,
    scale: float,
    gamma: Tensor | None,
    out: Tensor,
    accumulate: bool,
) -> None:
    """Write `reference.gate_project` to `out`, or add it to what is there, (b, l, m)."""
    from gigavim.kernels.block import triton_launch

    triton_launch.gate_project(y, y_reverse, z, weight, scale, gamma, out, accumulate)


@gate_project.register_fake
def _(
    y: Tensor,
    y_reverse: Tensor | None,
    z: Tensor,
    weight: Tensor,
    scale: float,
    gamma: Tensor | None,
    out: Tensor,
    accumulate: bool,
) -> None:
    return None
