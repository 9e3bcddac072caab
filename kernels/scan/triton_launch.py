"""Hands tensors to the kernels in Triton, and adds up what they leave in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gigavim.kernels.scan import triton_backward, triton_kernels, triton_spoil
from gigavim.kernels.scan.triton_backward import Backward
from gigavim.kernels.scan.triton_kernels import Prefix, Scan, Summarise
from gigavim.kernels.scan.triton_plan import SEGMENT, TUNED, Plan, channel_block, plan_chunks
from gigavim.kernels.scan.triton_scan import Inputs

KERNELS = {
    "summarise": triton_kernels.summarise,
    "prefix": triton_kernels.prefix,
    "scan": triton_kernels.scan,
    "spoil": triton_spoil.spoil,
    "backward": triton_backward.backward,
}
CUT = {torch.float32: 28.0, torch.float64: 60.0}
"""Weights below ``2**-CUT`` do not change a sum."""

Rows = tuple[Tensor | None, int]
"""A tensor whose rows, one for each token, are contiguous; and the distance of the rows."""


def forward(
    directions: Sequence[Inputs],
    offsets: Tensor | None,
    softplus: bool,
    reverse: Sequence[bool],
    chunk: int,
) -> list[Tensor]:
    """Return y, or s without C, and the last state of each direction."""
    summary = directions[0].C is None
    sequences = directions[0].u.shape[0] if offsets is None else len(offsets) - 1
    lasts = [x.A.new_empty(sequences, *x.A.T.shape) for x in directions]
    sums = [x.A.new_empty(sequences, x.A.shape[0]) for x in directions] if summary else None
    ys = None if summary else [x.u.new_empty(x.u.shape) for x in directions]
    if directions[0].u.numel() == 0:
        for x, h in zip(directions, lasts, strict=True):
            h.zero_() if x.h is None else h.copy_(x.h.mT)
        for s in sums or ():
            s.zero_()
    else:
        plan = plan_chunks(directions, offsets, softplus, reverse, chunk)
        states = _states(directions, plan, lasts, sums)
        if not summary:
            _scan(directions, plan, states, ys=ys, lasts=lasts)
    return [x for y, h in zip(ys or sums or (), lasts, strict=True) for x in (y, h.mT)]


def backward(
    directions: Sequence[Inputs],
    gradients: Sequence[Tensor | None],
    offsets: Tensor | None,
    softplus: bool,
    reverse: Sequence[bool],
    chunk: int,
) -> list[Tensor | None]:
    """Return the gradient of every input from those of the results of `forward`."""
    if directions[0].u.numel() == 0:
        zeros = [x._replace(h=None) for x in directions]
        found = [[None if v is None else torch.zeros_like(v) for v in x] for x in zeros]
        for x, dh, gradient in zip(directions, gradients[1::2], found, strict=True):
            gradient[-1] = None if x.h is None else dh
        return [v for gradient in found for v in gradient]

    plan = plan_chunks(directions, offsets, softplus, reverse, chunk)
    scratch = [x.A.new_empty(plan.sequences, *x.A.T.shape) for x in directions]
    states = _states(directions, plan, scratch)
    tokens = directions[0].u.shape[0] * directions[0].u.shape[1]
    rows = tokens // SEGMENT + plan.chunk_count + 1
    checkpoints = [x.A.new_empty(rows, *x.A.T.shape) for x in directions]
    _scan(directions, plan, states, checkpoints=checkpoints)
    return _gradients(directions, plan, gradients, checkpoints)


def _width(weights: Tensor | None, channels: int) -> int:
    """Return how many channels share B or C; 0 if they are constant."""
    if weights is None or weights.ndim == 2:
        return 0
    return channels // weights.shape[2] if weights.ndim == 4 else channels


def _rows(x: Tensor | None) -> Rows:
    if x is None:
        return None, 0
    rows = x.reshape(x.shape[0] * x.shape[1], -1)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    return rows, rows.stride(0)


def _weights(x: Tensor | None) -> Rows:
    return (x.contiguous(), 0) if x is not None and x.ndim == 2 else _rows(x)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _inside(h: Tensor | None) -> Tensor | None:
    """Turn states (k, d, n) into (k, n, d), where lanes that are channels read side by side."""
    return None if h is None else h.mT.contiguous()


def _launch(
    name: str, params: Sequence[Any], plan: Plan, x: Inputs, *arguments: Any, **constants: Any
) -> None:
    """Launch a kernel with a program for each chunk and block of channels, and each direction."""
    channels, states = x.A.shape
    block = channel_block(name, plan, x)
    constants |= {
        "D": channels,
        "N": states,
        "BLOCK": block,
        "STATES": triton.next_power_of_2(states),
        "SOFTPLUS": plan.softplus,
        "UNROLL": TUNED[name].tokens,
        "FLOAT": _float(x),
    }
    run(
        name,
        plan.chunk_count * triton.cdiv(channels, block),
        params,
        (plan.chunks, *arguments),
        constants,
    )


def run(
    name: str, programs: int, params: Sequence[Any], arguments: Sequence[Any], constants: Any
) -> None:
    """Launch so many programs of a kernel for each direction."""
    launch = TUNED[name]
    device = next(x for x in params[0] if isinstance(x, Tensor))
    with torch.cuda.device_of(device):  # type: ignore[no-untyped-call]
        KERNELS[name][(programs, 1, len(params))](
            tuple(params),
            *arguments,
            **constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,
        )


def _float(x: Inputs) -> tl.dtype:
    return tl.float64 if x.A.dtype == torch.float64 else tl.float32


def _states(
    directions: Sequence[Inputs],
    plan: Plan,
    lasts: Sequence[Tensor],
    sums: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """Return the state before each chunk (chunks, n, d), or None if the sequences are whole.

    Fills the last states of empty sequences, with `sums` those of all, and `sums`.
    """
    if plan.whole and sums is None:
        return [None for _ in directions]
    first = [
        Summarise(
            *_rows(x.u),
            *_rows(x.dt),
            x.A.T.contiguous(),
            *_weights(x.B),
            None,
            0,
            _dense(x.dt_bias),
            *_summaries(x, plan),
            reverse,
        )
        for x, reverse in zip(directions, plan.reverse, strict=True)
    ]
    return _combine(
        directions, plan, first, [_inside(x.h) for x in directions], lasts, sums, adjoint=False
    )


def _adjoints(
    directions: Sequence[Inputs],
    plan: Plan,
    dys: Sequence[Tensor | None],
    dhs: Sequence[Tensor | None],
    lasts: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the gradient of the state after each chunk, as `_states` does those before it."""
    if plan.whole:
        return [None for _ in directions]
    first = [
        Summarise(
            *_rows(dy),
            *_rows(x.dt),
            x.A.T.contiguous(),
            *_weights(x.C),
            *_rows(x.z),
            _dense(x.dt_bias),
            *_summaries(x, plan),
            reverse,
        )
        for x, dy, reverse in zip(directions, dys, plan.reverse, strict=True)
    ]
    return _combine(directions, plan, first, dhs, lasts, None, adjoint=True)


def _summaries(x: Inputs, plan: Plan) -> tuple[Tensor, Tensor]:
    channels, states = x.A.shape
    local = x.A.new_empty(plan.chunk_count, states, channels)
    return local, local.new_empty(plan.chunk_count, channels)


def _combine(
    directions: Sequence[Inputs],
    plan: Plan,
    first: Sequence[Summarise],
    hs: Sequence[Tensor | None],
    lasts: Sequence[Tensor],
    sums: Sequence[Tensor] | None,
    *,
    adjoint: bool,
) -> list[Tensor | None]:
    """Run phases 1 and 2."""
    x = directions[0]
    width = _width(x.C if adjoint else x.B, x.A.shape[0])
    _launch(
        "summarise", first, plan, x, WIDTH=width, ADJOINT=adjoint, WHOLE=sums is not None,
        CUT=CUT[x.A.dtype],
    )  # fmt: skip
    states = [torch.empty_like(p.local) for p in first]
    nothing: list[None] = [None for _ in first]
    second = [
        Prefix(p.A, h, p.local, p.sums, state, last, s, p.reverse != adjoint)
        for p, h, state, last, s in zip(first, hs, states, lasts, sums or nothing, strict=True)
    ]
    block = TUNED["prefix"].channels
    constants = {"D": x.A.shape[0], "N": x.A.shape[1], "BLOCK": block, "FLOAT": _float(x)}
    programs = plan.sequences * triton.cdiv(x.A.numel(), block)
    run("prefix", programs, second, (plan.chunks,), constants | {"WHOLE": sums is not None})
    return list(states)


def _scan(
    directions: Sequence[Inputs],
    plan: Plan,
    states: Sequence[Tensor | None],
    *,
    ys: Sequence[Tensor] | None = None,
    lasts: Sequence[Tensor] | None = None,
    checkpoints: Sequence[Tensor] | None = None,
) -> None:
    """Run phases 3 and 4 for outputs and last states, or phase 3 for checkpoints."""
    none: list[None] = [None for _ in directions]
    params = [
        Scan(
            *_rows(x.u),
            *_rows(x.dt),
            x.A.T.contiguous(),
            *_weights(x.B),
            *_weights(x.C),
            _dense(x.D),
            *_rows(x.z),
            _dense(x.dt_bias),
            _inside(x.h),
            state,
            *outputs,
        )
        for x, state, *outputs in zip(
            directions, states, ys or none, lasts or none, checkpoints or none, plan.reverse,
            strict=True,
        )
    ]  # fmt: skip
    x = directions[0]
    _launch("scan", params, plan, x, **_widths(x), SEGMENT=SEGMENT)
    if ys is not None and not plan.whole:
        channels, n = x.A.shape
        block = TUNED["spoil"].channels
        constants = {"D": channels, "N": n, "BLOCK": block, "FLOAT": _float(x)}
        constants["STATES"] = triton.next_power_of_2(n)
        programs = plan.sequences * triton.cdiv(channels, block)
        run("spoil", programs, params, (plan.chunks,), constants)


def _widths(x: Inputs) -> dict[str, int]:
    channels = x.A.shape[0]
    return {"B_WIDTH": _width(x.B, channels), "C_WIDTH": _width(x.C, channels)}


def _gradients(
    directions: Sequence[Inputs],
    plan: Plan,
    gradients: Sequence[Tensor | None],
    checkpoints: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the gradient of every input."""
    tokens = directions[0].u.shape[0] * directions[0].u.shape[1]
    firsts = [None if g is None else g.contiguous() for g in gradients[::2]]
    dhs = [_inside(g) for g in gradients[1::2]]
    scans = [x.C is not None for x in directions]
    dys = [_zeros(g, x.u) if y else None for x, g, y in zip(directions, firsts, scans, strict=True)]
    dss = [None if y else g for g, y in zip(firsts, scans, strict=True)]
    dh_firsts = [x.A.new_empty(plan.sequences, *x.A.T.shape) for x in directions]
    adjoints = _adjoints(directions, plan, dys, dhs, dh_firsts)

    blocks = triton.cdiv(directions[0].A.shape[0], channel_block("backward", plan, directions[0]))
    parts = SEGMENT // TUNED["backward"].tokens
    params = []
    for x, dy, dh, ds, dh_first, adjoint, states, reverse in zip(
        directions, dys, dhs, dss, dh_firsts, adjoints, checkpoints, plan.reverse, strict=True
    ):
        channels, n = x.A.shape
        by_chunk = x.A.new_empty(plan.chunk_count, channels)

        params.append(
            Backward(
                *_rows(x.u),
                *_rows(x.dt),
                x.A.T.contiguous(),
                *_weights(x.B),
                *_weights(x.C),
                _dense(x.D),
                *_rows(x.z),
                _dense(x.dt_bias),
                states,
                x.A.new_empty(plan.chunk_count, parts, *x.A.T.shape),
                *_rows(dy),
                dh,
                ds,
                adjoint,
                du=x.u.new_empty(x.u.shape),
                ddt=x.dt.new_empty(x.dt.shape),
                dA=x.A.new_empty(plan.chunk_count, n, channels),
                dB=_parts(x.B, x, plan, blocks),
                dC=_parts(x.C, x, plan, blocks),
                dD=None if x.D is None else by_chunk,
                dz=None if x.z is None else x.z.new_empty(x.z.shape),
                dbias=None if x.dt_bias is None else torch.empty_like(by_chunk),
                dh=None if x.h is None else dh_first,
                reverse=reverse,
            )
        )
    _launch(
        "backward", params, plan, directions[0], tokens, **_widths(directions[0]), SEGMENT=SEGMENT
    )
    return [
        gradient
        for x, p in zip(directions, params, strict=True)
        for gradient in (
            p.du,
            p.ddt,
            p.dA.sum(0).T.contiguous(),
            _over_blocks(p.dB, x.B),
            None if x.C is None else _over_blocks(p.dC, x.C),
            None if x.D is None else p.dD.sum(0).to(x.D.dtype),
            p.dz,
            None if x.dt_bias is None else p.dbias.sum(0).to(x.dt_bias.dtype),
            None if x.h is None else p.dh.mT,
        )
    ]


def _parts(weights: Tensor | None, x: Inputs, plan: Plan, blocks: int) -> Tensor | None:
    """Allocate the gradients of B or C that each chunk or block of channels writes."""
    if weights is None:
        return None
    if weights.ndim == 2:
        return x.A.new_empty((plan.chunk_count, *x.A.T.shape))
    return x.A.new_empty((blocks, x.u.shape[0] * x.u.shape[1], x.A.shape[1]))


def _zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _over_blocks(sums: Tensor, weights: Tensor) -> Tensor:
    """Add up the gradients of B or C that chunks or blocks of channels have written."""
    if weights.ndim == 2:
        return sums.sum(0).T.to(weights.dtype)
    groups = weights.shape[2] if weights.ndim == 4 else 1
    whole = sums.view(groups, -1, *sums.shape[1:]).sum(1)
    return whole.movedim(0, 1).reshape(weights.shape).to(weights.dtype)
