"""The selective scan: one function, several implementations, one visible rule that picks one."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from gigavim.errors import KernelError
from gigavim.kernels.scan import c_scan, reference, torch_scan

__all__ = ["Backend", "combine", "scan_backend", "scan_summary", "selective_scan"]


class Backend(NamedTuple):
    """An implementation of the scan and why it was picked."""

    name: str
    """``reference``, ``torch`` or ``c``."""
    reason: str
    """For people, for instance to be printed by ``gigavim doctor``."""


def scan_backend(device: torch.device | str, dtype: torch.dtype) -> Backend:
    """Return which implementation scans tensors of this device and dtype, and why.

    ``GIGAVIM_SCAN=reference|torch|c`` in the environment overrides the rule.

    Raises
    ------
    KernelError
        If the environment asks for an implementation that cannot run here; it is never replaced
        silently.
    """
    device = torch.device(device)
    if device.type != "cpu":
        missing: str | None = f"the C library runs on the CPU, not on {device.type}"
    elif dtype == torch.float64:
        missing = "the C library has no float64"
    else:
        missing = c_scan.unavailable()

    asked = os.environ.get("GIGAVIM_SCAN")
    if asked is None:
        if missing:
            return Backend("torch", f"plain PyTorch, because {missing}")
        return Backend("c", f"the C library built for {c_scan.library_name()}")
    if asked not in ("reference", "torch", "c"):
        raise KernelError(
            f"GIGAVIM_SCAN={asked}: there is no such scan; use reference, torch or c, or unset it"
        )
    if asked == "c" and missing:
        raise KernelError(f"GIGAVIM_SCAN=c cannot run: {missing}; unset it or use torch")
    return Backend(asked, f"asked for by GIGAVIM_SCAN={asked}")


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
        State before the first token (after the last one if `reverse`), shape (b, d, n); zero by
        default.
    reverse
        Scan from the last token to the first.

    Returns
    -------
    y
        Output, shape (b, l, d), of u's dtype.
    h
        State after the last token (after the first if `reverse`), shape (b, d, n), float32, or
        float64 for float64 inputs.

    Raises
    ------
    ValueError
        If shapes or devices do not fit.
    KernelError
        If the environment asks for an implementation that cannot run here.
    """
    _check_shapes(u, dt, A, B, C, D, z, dt_bias, h)
    backend = scan_backend(u.device, u.dtype).name
    scan = {
        "reference": reference.selective_scan,
        "torch": torch_scan.selective_scan,
        "c": c_scan.selective_scan,
    }[backend]
    return scan(u, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus, h=h, reverse=reverse)


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
    """Summarise a segment of tokens: it maps any incoming state h to ``exp(A s) h + h_local``.

    Parameters
    ----------
    dt, A, B, u, dt_bias, dt_softplus, reverse
        As in `selective_scan`.

    Returns
    -------
    s
        Sum of the step sizes, shape (b, d), float32, or float64 for float64 inputs.
    h_local
        State after the segment when it starts from zero, shape (b, d, n), of the same dtype.
    """
    if scan_backend(u.device, u.dtype).name == "c":
        _check_shapes(u, dt, A, B, B, None, None, dt_bias, None)
        return c_scan.scan_summary(dt, A, B, u, dt_bias, dt_softplus=dt_softplus, reverse=reverse)
    s = reference.step_sizes(dt, dt_bias, dt_softplus, reference.state_dtype(u)).sum(1)
    _, h_local = selective_scan(
        u, dt, A, B, B, dt_bias=dt_bias, dt_softplus=dt_softplus, reverse=reverse
    )
    return s, h_local


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
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (b, l, d) and A (d, n), not {_shape(u)} and {_shape(A)}")
    batch, length, channels = u.shape
    states = A.shape[1]
    expected = {
        "dt": (dt, (batch, length, channels)),
        "A": (A, (channels, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "dt_bias": (dt_bias, (channels,)),
        "h": (h, (batch, channels, states)),
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
