"""The selective scan: one function, several implementations, one visible rule that picks one."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gigavim.errors import KernelError
from gigavim.kernels.packed import check_offsets, count_sequences
from gigavim.kernels.scan import c_scan, library, reference, torch_scan

__all__ = [
    "Backend",
    "ScanInputs",
    "backend_name",
    "bidirectional_scan",
    "combine",
    "scan_backend",
    "scan_summary",
    "selective_scan",
]


class Backend(NamedTuple):
    """An implementation of the scan and why it was picked."""

    name: str
    """``reference``, ``torch``, ``c`` or ``triton``."""
    reason: str
    """For people, for instance to be printed by ``gigavim doctor``."""


class ScanInputs(NamedTuple):
    """What one direction scans, as `selective_scan` says it."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    h: Tensor | None = None


def scan_backend(device: torch.device | str, dtype: torch.dtype) -> Backend:
    """Return which implementation scans tensors of this device and dtype, and why.

    C on the CPU, Triton on CUDA, and plain PyTorch where those do not run.
    ``GIGAVIM_SCAN=reference|torch|c|triton`` in the environment overrides the rule.

    Raises
    ------
    KernelError
        If the environment asks for an implementation that cannot run here; it is never replaced
        silently.
    """
    device = torch.device(device)
    missing = {
        "reference": None,
        "torch": None,
        "c": _c_is_missing(device, dtype),
        "triton": _triton_is_missing(device, dtype),
    }
    asked = os.environ.get("GIGAVIM_SCAN")
    if asked is None:
        fast = "triton" if device.type == "cuda" else "c"
        if missing[fast]:
            return Backend("torch", f"plain PyTorch, because {missing[fast]}")
        if fast == "c":
            return Backend("c", f"the C library built for {library.library_name()}")
        return Backend("triton", "Triton kernels, compiled at the first scan")
    if asked not in missing:
        raise KernelError(
            f"GIGAVIM_SCAN={asked}: there is no such scan; use {', '.join(missing)}, or unset it"
        )
    if missing[asked]:
        raise KernelError(
            f"GIGAVIM_SCAN={asked} cannot run: {missing[asked]}; unset it or use torch"
        )
    return Backend(asked, f"asked for by GIGAVIM_SCAN={asked}")


def backend_name(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name that `scan_backend` returns, as a constant to ``torch.compile``."""
    return scan_backend(device, dtype).name


# torch.compile need not look at the environment and at files. torch.compiler.assume_constant_result
# does just this, after importing torch._dynamo, which takes a second.
backend_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _c_is_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the C library runs on the CPU, not on {device.type}"
    if dtype == torch.float64:
        return "the C library has no float64"
    return library.unavailable()


def _triton_is_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"the Triton kernels run on CUDA, not on {device.type}"
    if dtype == torch.float64:
        return "the Triton kernels have no float64"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    return None


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
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]``; return ``C[t] h[t] + D u[t]``, gated.

    A sequence may be cut anywhere: scanning its parts in order, each from the state that the last
    one returned, gives the same result as scanning it whole. Every argument is differentiable.
    Memory besides inputs and outputs does not grow with n times l; with gradients by n times l / 16
    or less. (The reference alone stores all states for its gradients.)

    Parameters
    ----------
    u
        Input, shape (b, l, d).
    dt
        Step sizes before bias and softplus, shape (b, l, d).
    A
        Decay rates, negative, shape (d, n).
    B, C
        Weights into and out of the states, shape (b, l, n); or (b, l, g, n) where channel c uses
        group ``c // (d // g)``; or constant, (d, n).
    D
        Skip weights, shape (d,); none by default.
    z
        Gate, shape (b, l, d): the output is multiplied by ``silu(z)``; none by default.
    dt_bias
        Added to dt, shape (d,).
    dt_softplus
        Whether to take softplus (the identity above 20) of dt after the bias.
    h
        State before the first token (after the last one if `reverse`), shape (b, d, n), or of each
        sequence, (k, d, n); zero by default.
    reverse
        Scan from the last token to the first, each sequence by itself.
    offsets
        For k sequences of different lengths, end to end in a batch of one: sequence i is tokens
        ``offsets[i]`` to ``offsets[i + 1]``. Int64, shape (k + 1,), from 0 to l.

    Returns
    -------
    y
        Output, shape (b, l, d), of u's dtype.
    h
        State after the last token (after the first if `reverse`), shape (b, d, n), or of each
        sequence, (k, d, n); float32, or float64 for float64 inputs.

    Raises
    ------
    ValueError
        If shapes or devices do not fit, or the offsets fall.
    KernelError
        If the environment asks for an implementation that cannot run here.
    """
    _check_shapes(u, dt, A, B, C, D, z, dt_bias, h, offsets)
    scan: Callable[..., tuple[Tensor, Tensor]]
    match backend_name(u.device, u.dtype):
        case "c":
            scan = c_scan.selective_scan
        case "triton":
            from gigavim.kernels.scan import triton_scan

            scan = triton_scan.selective_scan
        case "torch":
            scan = torch_scan.selective_scan
        case _:
            scan = reference.selective_scan
    options: dict[str, Any] = {
        "dt_softplus": dt_softplus,
        "h": h,
        "reverse": reverse,
        "offsets": offsets,
    }
    return scan(u, dt, A, B, C, D, z, dt_bias, **options)


def bidirectional_scan(
    forward: ScanInputs,
    backward: ScanInputs,
    *,
    dt_softplus: bool = False,
    offsets: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scan forwards and backwards, as two calls of `selective_scan` would, in one go.

    Parameters
    ----------
    forward, backward
        What is scanned from the first token on, and from the last one back. u, dt, A, B and C have
        the same shapes in both.
    dt_softplus, offsets
        As in `selective_scan`, for both.

    Returns
    -------
    forward, backward
        y and h of each direction.

    Raises
    ------
    ValueError, KernelError
        As in `selective_scan`.
    """
    for inputs in (forward, backward):
        _check_shapes(*inputs, offsets)
    for name in ("u", "dt", "A", "B", "C"):
        x, other = getattr(forward, name), getattr(backward, name)
        if x.shape != other.shape:
            shapes = f"{_shape(x)} and {_shape(other)}"
            raise ValueError(f"{name} must have one shape in both directions, not {shapes}")
    match backend_name(forward.u.device, forward.u.dtype):
        case "c":
            return c_scan.bidirectional_scan(
                forward, backward, dt_softplus=dt_softplus, offsets=offsets
            )
        case "triton":
            from gigavim.kernels.scan import triton_scan

            return triton_scan.bidirectional_scan(
                triton_scan.Inputs(*forward),
                triton_scan.Inputs(*backward),
                dt_softplus=dt_softplus,
                offsets=offsets,
            )
    first, second = (
        selective_scan(
            *inputs[:8], dt_softplus=dt_softplus, h=inputs.h, reverse=reverse, offsets=offsets
        )
        for inputs, reverse in ((forward, False), (backward, True))
    )
    return first, second


def scan_summary(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    u: Tensor,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Summarise a segment of tokens: it maps any incoming state h to ``exp(A s) h + h_local``.

    Parameters
    ----------
    dt, A, B, u, dt_bias, dt_softplus, reverse, offsets
        As in `selective_scan`; with offsets each sequence is a segment.

    Returns
    -------
    s
        Sum of the step sizes, shape (b, d) or (k, d), float32, or float64 for float64 inputs.
    h_local
        State after the segment when it starts from zero, shape (b, d, n) or (k, d, n), of the same
        dtype.

    Raises
    ------
    ValueError, KernelError
        As in `selective_scan`.
    """
    _check_shapes(u, dt, A, B, B, None, None, dt_bias, None, offsets)
    options: dict[str, Any] = {
        "dt_softplus": dt_softplus,
        "reverse": reverse,
        "offsets": offsets,
    }
    match backend_name(u.device, u.dtype):
        case "c":
            return c_scan.scan_summary(dt, A, B, u, dt_bias, **options)
        case "triton":
            from gigavim.kernels.scan import triton_scan

            return triton_scan.scan_summary(dt, A, B, u, dt_bias, **options)
    step = reference.step_sizes(dt, dt_bias, dt_softplus, reference.state_dtype(u))
    if offsets is None:
        s = step.sum(1)
    else:
        check_offsets(offsets, u.shape[1])
        s = torch.stack([step[0, i:j].sum(0) for i, j in pairwise(offsets.tolist())])
    return s, selective_scan(u, dt, A, B, B, dt_bias=dt_bias, **options)[1]


def combine(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], A: Tensor
) -> tuple[Tensor, Tensor]:
    """Summarise two adjoining segments from their summaries, in the order of the scan.

    Associative; ``(0, 0)`` is the identity. With ``(s, h)`` of anything as `first` and the state h
    before the segment, the second component is the state after it.
    """
    s1, h1 = first
    s2, h2 = second
    return s1 + s2, torch.exp(A.to(s2.dtype) * s2[..., None]) * h1 + h2


def _check_shapes(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h: Tensor | None,
    offsets: Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (b, l, d) and A (d, n), not {_shape(u)} and {_shape(A)}")
    batch, length, channels = u.shape
    states = A.shape[1]
    sequences = batch if offsets is None else count_sequences(offsets, u)
    expected = {
        "dt": (dt, (batch, length, channels)),
        "A": (A, (channels, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "dt_bias": (dt_bias, (channels,)),
        "h": (h, (sequences, channels, states)),
        "offsets": (offsets, (sequences + 1,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} for u {_shape(u)}, not {_shape(tensor)}")
        if tensor is not None and tensor.device != u.device:
            raise ValueError(f"{name} must be on {u.device} like u, not on {tensor.device}")
    for name, weights in (("B", B), ("C", C)):
        groups = weights.shape[2] if weights.ndim == 4 else 1
        shapes = [
            (channels, states),
            (batch, length, states),
            (batch, length, groups, states),
        ]
        if weights.device != u.device:
            raise ValueError(f"{name} must be on {u.device} like u, not on {weights.device}")
        if tuple(weights.shape) not in shapes or groups == 0 or channels % groups:
            raise ValueError(
                f"{name} must be (b, l, n), (b, l, g, n) with g dividing d, or (d, n) "
                f"for u {_shape(u)} and A {_shape(A)}, not {_shape(weights)}"
            )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
