"""Hands tensors to the kernels around the scans."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gigavim.kernels.block.triton_conv import conv_project as conv_kernel
from gigavim.kernels.block.triton_gate import gate_project as gate_kernel
from gigavim.kernels.block.triton_norm import norm_project as norm_kernel
from gigavim.kernels.block.triton_plan import Launch, launch_of

KERNELS = {"norm_project": norm_kernel, "conv_project": conv_kernel, "gate_project": gate_kernel}


def norm_project(
    tokens: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    """Run the operator of this name."""
    launch, count = launch_of("norm_project", weight.dtype), _count(tokens)
    rows = _rows(tokens)
    outputs, width = weight.shape
    out = weight.new_empty(*tokens.shape[:2], outputs)
    arguments = (
        rows, rows.stride(0), norm_weight.contiguous(), _dense(norm_bias), weight.contiguous(), out,
        count, eps,
    )  # fmt: skip
    constants = _constants(weight.dtype, launch) | {
        "M": width,
        "OUT": outputs,
        "BLOCK": launch.block,
        "OUTPUTS": launch.outputs,
    }
    run("norm_project", triton.cdiv(count, launch.tokens), arguments, constants, launch)
    return out


def conv_project(
    x: Tensor,
    halo: Tensor | None,
    taps: Tensor,
    bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the operator of this name."""
    launch, count = launch_of("conv_project", x.dtype), _count(x)
    rows = _rows(x)
    channels, rank = dt_proj.shape
    u, dt = x.new_empty(x.shape), x.new_empty(x.shape)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    BC = x.new_empty(*x.shape[:2], x_proj.shape[0] - rank, dtype=dtype)
    arguments = (
        rows, rows.stride(0), _dense(halo), taps.contiguous(), bias.contiguous(),
        x_proj.contiguous(), dt_proj.contiguous(), u, dt, BC, count, x.shape[1],
    )  # fmt: skip
    constants = _constants(x.dtype, launch) | {
        "D": channels,
        "N": BC.shape[2] // 2,
        "RANK": rank,
        "TAPS": taps.shape[1],
        "REVERSE": reverse,
        "CHANNELS": launch.block,
        "PROJECTED": _padded(x_proj.shape[0]),
    }
    run("conv_project", triton.cdiv(count, launch.tokens), arguments, constants, launch)
    return u, dt, BC


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
    """Run the operator of this name."""
    launch, count = launch_of("gate_project", weight.dtype), _count(y)
    z_rows, out_rows = _rows(z), _rows(out)
    width, channels = weight.shape
    outputs = min(launch.outputs, _padded(width))
    arguments = (
        y.contiguous(), _dense(y_reverse), z_rows, z_rows.stride(0), weight.contiguous(),
        _dense(gamma), out_rows, out_rows.stride(0), count, scale,
    )  # fmt: skip
    constants = _constants(weight.dtype, launch) | {
        "D": channels,
        "M": width,
        "ACCUMULATE": accumulate,
        "CHANNELS": launch.block,
        "OUTPUTS": outputs,
    }
    programs = triton.cdiv(count, launch.tokens) * triton.cdiv(width, outputs)
    run("gate_project", programs, arguments, constants, launch)
    if out_rows.data_ptr() != out.data_ptr():  # its sequences do not adjoin in memory
        out.copy_(out_rows.view(out.shape))


def run(
    name: str, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch
) -> None:
    """Launch so many programs of a kernel."""
    if programs == 0:
        return
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        KERNELS[name][(programs,)](
            *arguments,
            **constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,
        )


def _constants(dtype: torch.dtype, launch: Launch) -> dict[str, Any]:
    return {
        "TOKENS": launch.tokens,
        "FLOAT": tl.float64 if dtype == torch.float64 else tl.float32,
        # Three products of tensor cores come as near as float32 does.
        "PRECISION": "tf32x3",
    }


def _count(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


def _padded(size: int) -> int:
    """Return the side of a product that holds so many numbers: a power of two, 16 or more."""
    return max(16, int(triton.next_power_of_2(size)))


def _rows(x: Tensor) -> Tensor:
    """Return one contiguous row for each token; a view where it can be one."""
    rows = x.reshape(-1, x.shape[2]) if x.numel() else x.new_empty(0, x.shape[2])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
