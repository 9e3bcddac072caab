"""The scan in C (scan.c), forward and backward, in float32.

``hatch_build.py`` builds one library for each instruction set; the best one that this CPU runs is
loaded with ctypes, so that no build depends on a version of Python or PyTorch. As torch is imported
first, the library uses the OpenMP runtime, and so the threads, of PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TARGETS = {"AVX512": ("avx512", "avx2", "generic"), "AVX2": ("avx2", "generic")}
"""Builds to look for, best first, by what PyTorch finds that the CPU has."""


def unavailable() -> str | None:
    """Return why the C library cannot run here, or None where it can."""
    library, text = _load()
    return text if library is None else None


def library_name() -> str:
    """Return the instruction set of the library in use, or nothing without one."""
    library, text = _load()
    return "" if library is None else text


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    h: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.selective_scan` in float32 whatever the inputs are."""
    y, h, _ = _scan(u, dt, A, B, C, D, z, dt_bias, h, dt_softplus, reverse)
    assert y is not None
    return y.to(u.dtype), h


def scan_summary(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    u: Tensor,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.scan_summary` in one pass."""
    _, h, s = _scan(u, dt, A, B, None, None, None, dt_bias, None, dt_softplus, reverse)
    return s, h


class _Inputs(NamedTuple):
    """Float32; B and C (b, l, g, n), or (1, 1, d, n) if constant. Without C there is no output."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    h: Tensor | None


class _Results(NamedTuple):
    """The output (b, l, d), the last state (b, d, n) and the sum of the step sizes (b, d)."""

    y: Tensor | None
    h: Tensor
    s: Tensor


def _scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> _Results:
    inputs = _Inputs(
        u.float(),
        dt.float(),
        A.float(),
        _per_token(B.float()),
        None if C is None else _per_token(C.float()),
        *(None if x is None else x.float() for x in (D, z, dt_bias, h)),
    )
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _Results(*_Scan.apply(softplus, reverse, *inputs))  # type: ignore[no-untyped-call]
    results, _ = _forward(inputs, softplus, reverse, differentiable=False)
    return results


def _per_token(weights: Tensor) -> Tensor:
    if weights.ndim == 2:
        return weights[None, None]
    return weights[:, :, None] if weights.ndim == 3 else weights


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, softplus: bool, reverse: bool, *tensors: Any) -> _Results:
        inputs = _Inputs(*tensors)
        results, checkpoints = _forward(inputs, softplus, reverse, differentiable=True)
        ctx.save_for_backward(checkpoints, *inputs)
        ctx.options = softplus, reverse
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *results: Tensor | None) -> tuple[Tensor | None, ...]:
        checkpoints, *tensors = ctx.saved_tensors
        softplus, reverse = ctx.options
        dy, dh, ds = results
        inputs = _Inputs(*tensors)
        return None, None, *_backward(inputs, softplus, reverse, checkpoints, dy, dh, ds)


def _forward(
    inputs: _Inputs, softplus: bool, reverse: bool, *, differentiable: bool
) -> tuple[_Results, Tensor | None]:
    """Scan; for gradients return the states at some tokens too, laid out as scan.c likes it."""
    inputs, call = _prepare(inputs, softplus, reverse)
    u, A = inputs.u, inputs.A
    y = None if inputs.C is None else u.new_empty(u.shape)
    h, s = u.new_empty(u.shape[0], *A.shape), u.new_empty(u.shape[0], u.shape[2])
    checkpoints = u.new_empty(call.checkpoint_floats) if differentiable else None
    call.y = _view(y)
    call.h_last, call.s, call.checkpoints = map(_pointer, (h, s, checkpoints))
    _run(_library().gigavim_scan_forward, call)
    return _Results(y, h, s), checkpoints


def _backward(
    inputs: _Inputs,
    softplus: bool,
    reverse: bool,
    checkpoints: Tensor,
    dy: Tensor | None,
    dh_last: Tensor | None,
    ds: Tensor | None,
) -> _Inputs:
    """Return the gradient of each input."""
    inputs, call = _prepare(inputs, softplus, reverse)
    u, _, A, B, C, D, z, dt_bias, h = inputs
    dy = None if dy is None else _dense_tokens(dy)
    dh_last, ds = (None if x is None else x.contiguous() for x in (dh_last, ds))
    call.dy = _view(dy)
    call.dh_last, call.ds, call.checkpoints = map(_pointer, (dh_last, ds, checkpoints))

    batch, _, channels = u.shape
    du, ddt = u.new_empty(u.shape), u.new_empty(u.shape)
    dz = None if z is None else u.new_empty(u.shape)
    # Each part of the channels sums its own.
    dB = u.new_zeros(batch * call.parts, *B.shape[1:])
    dC = None if C is None else u.new_zeros(batch * call.parts, *C.shape[1:])
    dA, dh = u.new_empty(batch, *A.shape), u.new_empty(batch, *A.shape)
    dD, dbias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    call.du, call.ddt, call.dz, call.dB, call.dC = map(_view, (du, ddt, dz, dB, dC))
    call.dA, call.dD, call.dbias, call.dh = map(_pointer, (dA, dD, dbias, dh))
    _run(_library().gigavim_scan_backward, call)

    def over_parts(sums: Tensor, weights: Tensor) -> Tensor:
        whole = sums.view(batch, call.parts, *sums.shape[1:]).sum(1)
        return whole.sum(0, keepdim=True) if weights.shape[0] != batch else whole

    return _Inputs(
        du,
        ddt,
        dA.sum(0),
        over_parts(dB, B),
        None if dC is None or C is None else over_parts(dC, C),
        None if D is None else dD.sum(0),
        dz,
        None if dt_bias is None else dbias.sum(0),
        None if h is None else dh,
    )


class _View(ctypes.Structure):
    """Mirrors ``View`` in scan.c."""

    _fields_ = (("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("token", ctypes.c_int64))


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class _Call(ctypes.Structure):
    """Mirrors ``Scan`` in scan.c."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch length channels states B_groups C_groups"),
        *_fields(ctypes.c_int64, "softplus reverse threads parts checkpoint_floats"),
        *_fields(_View, "u dt B C z"),
        *_fields(ctypes.c_void_p, "A D dt_bias h"),
        *_fields(_View, "y"),
        *_fields(ctypes.c_void_p, "h_last s checkpoints"),
        *_fields(_View, "dy"),
        *_fields(ctypes.c_void_p, "dh_last ds"),
        *_fields(_View, "du ddt dz dB dC"),
        *_fields(ctypes.c_void_p, "dA dD dbias dh"),
    )


def _prepare(inputs: _Inputs, softplus: bool, reverse: bool) -> tuple[_Inputs, _Call]:
    """Return the inputs as scan.c needs them, and a call that refers to their memory."""
    u, dt, A, B, C, D, z, dt_bias, h = inputs
    u, dt, B = map(_dense_tokens, (u, dt, B))
    C, z = (None if x is None else _dense_tokens(x) for x in (C, z))
    A = A.contiguous()
    D, dt_bias, h = (None if x is None else x.contiguous() for x in (D, dt_bias, h))
    weights = B if C is None else C
    batch, length, channels = u.shape
    call = _Call(
        batch=batch,
        length=length,
        channels=channels,
        states=A.shape[1],
        B_groups=B.shape[2],
        C_groups=weights.shape[2],
        softplus=softplus,
        reverse=reverse,
        threads=torch.get_num_threads(),
    )
    call.u, call.dt, call.B, call.C, call.z = map(_view, (u, dt, B, weights, z))
    call.A, call.D, call.dt_bias, call.h = map(_pointer, (A, D, dt_bias, h))
    _library().gigavim_scan_plan(ctypes.byref(call))
    return _Inputs(u, dt, A, B, C, D, z, dt_bias, h), call


def _dense_tokens(tensor: Tensor) -> Tensor:
    """Return a tensor (b, l, ...) whose values of one token lie side by side, copied if need be."""
    return tensor if tensor[:1, :1].is_contiguous() else tensor.contiguous()


def _view(tensor: Tensor | None) -> _View:
    if tensor is None:
        return _View()
    batch, token = (tensor.stride(i) if tensor.shape[i] > 1 else 0 for i in (0, 1))
    return _View(tensor.data_ptr(), batch, token)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(function: Callable[[Any], int], call: _Call) -> None:
    if function(ctypes.byref(call)):
        raise MemoryError(f"no memory to scan {call.channels} channels of {call.states} states")


def _library() -> ctypes.CDLL:
    library, text = _load()
    assert library is not None, text
    return library


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the best library and its instruction set, or None and why there is none."""
    folder = Path(__file__).parent
    sources = hashlib.sha256((folder / "scan.c").read_bytes() + (folder / "vector.h").read_bytes())
    reason = "the C library is not built; install gcc or clang, then GigaVim again"
    for target in TARGETS.get(torch.backends.cpu.get_cpu_capability(), ("generic",)):
        path = folder / f"libgigavim_scan-{target}.so"
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            reason = f"the C library does not load: {error}"
            continue
        if _sources(library) == sources.hexdigest():
            return library, target
        reason = f"{path} is not built from the {folder / 'scan.c'} of today; install GigaVim again"
    return None, reason


def _sources(library: ctypes.CDLL) -> str:
    value = ctypes.c_char_p.in_dll(library, "gigavim_scan_sources").value or b""
    return value.decode()
