"""The scan in C (scan.c), forward and backward, as operators of PyTorch.

``torch.ops.gigavim.scan_forward``, ``scan_both`` and ``scan_backward`` check nothing: call them
through `gigavim.kernels`. They are whole to ``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gigavim.kernels.packed import check_offsets
from gigavim.kernels.scan import library

SEGMENT = 1024
"""Tokens of a sequence that are worth a thread of their own."""


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
    """Run `gigavim.kernels.selective_scan`, computed in float32 whatever the inputs are.

    The number of threads changes no bit of y and h, unless there are three threads or more for each
    block of channels: then they share long sequences, and results change by rounding, about 1e-6.
    The gradients of B and C, sums over the channels, always change by rounding.
    """
    y, h, _ = _scan(u, dt, A, B, C, D, z, dt_bias, h, offsets, dt_softplus, reverse)
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
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.scan_summary` in one pass."""
    _, h, s = _scan(u, dt, A, B, None, None, None, dt_bias, None, offsets, dt_softplus, reverse)
    return s, h


def bidirectional_scan(
    forward: Sequence[Any],
    backward: Sequence[Any],
    *,
    dt_softplus: bool = False,
    offsets: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Run `gigavim.kernels.bidirectional_scan` of two ScanInputs; no bit differs from two scans.

    Without gradients to come it is one call of the library, whose threads share both directions.
    """
    inputs, reversed_inputs = _operands(*forward), _operands(*backward)
    if _differentiable(*inputs, *reversed_inputs):
        options: dict[str, Any] = {"dt_softplus": dt_softplus, "offsets": offsets}
        return (
            selective_scan(*forward[:-1], h=forward[-1], **options),
            selective_scan(*backward[:-1], h=backward[-1], reverse=True, **options),
        )
    y, h, y_reverse, h_reverse = torch.ops.gigavim.scan_both.default(
        inputs, reversed_inputs, offsets, dt_softplus
    )
    return (y.to(forward[0].dtype), h), (y_reverse.to(backward[0].dtype), h_reverse)


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
    offsets: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output (b, l, d), the last state and the sum of the step sizes."""
    inputs = _operands(u, dt, A, B, C, D, z, dt_bias, h)
    y, h, s, _ = torch.ops.gigavim.scan_forward.default(
        *inputs, offsets, (softplus, reverse, _differentiable(*inputs))
    )
    return y, h, s


def _operands(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    h: Tensor | None = None,
) -> list[Tensor | None]:
    """Return the tensors as the operators take them."""
    weights = (None if x is None else _per_token(x.float()) for x in (B, C))
    rest = (None if x is None else x.float() for x in (dt_bias, h))
    return [
        library.in_rows(u),
        library.in_rows(dt),
        A.float(),
        *weights,
        None if D is None else D.float(),
        None if z is None else library.in_rows(z),
        *rest,
    ]


def _differentiable(*inputs: Tensor | None) -> bool:
    """Return whether gradients may come."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _per_token(weights: Tensor) -> Tensor:
    """Return B or C as (b, l, g, n), or (1, 1, d, n) if constant."""
    if weights.ndim == 2:
        return weights[None, None]
    return weights[:, :, None] if weights.ndim == 3 else weights


class _Inputs(NamedTuple):
    """All of float32, but u, dt and z may be bfloat16. Without C there is no output."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    h: Tensor | None
    offsets: Tensor | None

    @property
    def sequences(self) -> int:
        return self.u.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @property
    def groups(self) -> tuple[int, int]:
        """Groups of B and of C."""
        return self.B.shape[2], (self.B if self.C is None else self.C).shape[2]

    @property
    def sharing(self) -> int:
        """Neighbouring channels that share both B and C."""
        return math.gcd(*(self.u.shape[2] // groups for groups in self.groups))

    @property
    def blocks(self) -> int:
        """Vectors of channels that share both B and C."""
        sharing = self.sharing
        vectors = -(-sharing // library.constant("lanes"))
        return self.u.shape[2] // sharing * vectors if sharing else 0


# The options, softplus, reverse and differentiable, are one argument: each costs PyTorch time.
_INPUTS = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? h, Tensor? offsets, bool[] options"
)
torch.library.define(
    "gigavim::scan_forward",
    f"({_INPUTS}) -> (Tensor y, Tensor h, Tensor s, Tensor checkpoints)",
)
torch.library.define(
    "gigavim::scan_both",  # without gradients
    "(Tensor?[] inputs, Tensor?[] reversed_inputs, Tensor? offsets, bool softplus)"
    " -> (Tensor y, Tensor h, Tensor y_reverse, Tensor h_reverse)",
)
torch.library.define(
    "gigavim::scan_backward",
    f"({_INPUTS}, Tensor checkpoints, Tensor? dy, Tensor? dh, Tensor? ds)"
    f" -> ({', '.join(['Tensor'] * 9)})",
)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, call, results = _prepare_forward(*arguments)
    library.run("scan_forward", call)
    return results


def _both(
    inputs: list[Tensor | None],
    reversed_inputs: list[Tensor | None],
    offsets: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # A call has but pointers to what it takes and gives: all is held until it has run.
    first = _prepare_forward(*inputs, offsets, (softplus, False, False))
    second = _prepare_forward(*reversed_inputs, offsets, (softplus, True, False))
    call = first[1]
    call.other = ctypes.addressof(second[1])
    library.run("scan_forward", call)
    return *first[2][:2], *second[2][:2]


def _prepare_forward(
    *arguments: Any,
) -> tuple[_Inputs, library.Scan, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return what `_prepare` does, and room for the results."""
    *tensors, options = arguments
    inputs, call = _prepare(_Inputs(*tensors), options)
    # Several for each thread, so that none waits for a slower core.
    call.parts = min(call.parts * (4 if call.threads > 1 else 1), call.blocks)
    workers = call.threads // max(1, call.sequences * call.blocks)
    segments = min(workers + 1, call.length // SEGMENT // max(1, call.sequences))
    # All but the first and the last are advanced twice: with four, four threads are twice as fast.
    call.segments = segments if segments >= 4 else 1
    results = y, h, s, checkpoints = _forward_results(*arguments)
    call.y = library.view(None if inputs.C is None else y)
    call.h_last, call.s, call.checkpoints = map(library.pointer, (h, s, checkpoints))
    return inputs, call, results


def _forward_results(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, (_, _, differentiable) = arguments
    inputs = _Inputs(*tensors)
    u, A = inputs.u, inputs.A
    sequences, (batch, length, channels) = inputs.sequences, u.shape
    checkpoints: tuple[int, ...] = (0,)
    if differentiable:  # one for each tile, laid out as scan.c likes it
        tiles = batch * length // library.constant("tile") + sequences
        checkpoints = (tiles, inputs.blocks, A.shape[1], library.constant("lanes"))
    return (
        u.new_empty(0 if inputs.C is None else u.shape),
        A.new_empty(sequences, *A.shape),
        A.new_empty(sequences, channels),
        A.new_empty(checkpoints),
    )


def _both_results(
    inputs: list[Tensor | None],
    reversed_inputs: list[Tensor | None],
    offsets: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = (softplus, False, False)
    y, h, _, _ = _forward_results(*inputs, offsets, options)
    y_reverse, h_reverse, _, _ = _forward_results(*reversed_inputs, offsets, options)
    return y, h, y_reverse, h_reverse


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, options = inputs
    ctx.save_for_backward(output[3], *tensors)
    ctx.options = options
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dh: Tensor | None, ds: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    checkpoints, *tensors = ctx.saved_tensors
    gradients = torch.ops.gigavim.scan_backward.default(
        *tensors, ctx.options, checkpoints, dy, dh, ds
    )
    present = zip(tensors, gradients, strict=False)  # the offsets have no gradient
    return *(None if x is None else gradient for x, gradient in present), None, None


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, options, checkpoints, dy, dh_last, ds = arguments
    inputs, call = _prepare(_Inputs(*tensors), options)
    u, dt, A, B, C, D, z, dt_bias, h, _ = inputs
    dy = None if dy is None else library.dense_tokens(dy)
    dh_last, ds = (None if x is None else x.contiguous() for x in (dh_last, ds))
    call.dy = library.view(dy)
    call.dh_last, call.ds, call.checkpoints = map(library.pointer, (dh_last, ds, checkpoints))

    sequences = inputs.sequences
    du, ddt = u.new_empty(u.shape), dt.new_empty(dt.shape)
    dz = None if z is None else z.new_empty(z.shape)
    dB, dC = (None if x is None else _gradients_of_parts(x, call) for x in (B, C))
    dA, dh = A.new_empty(sequences, *A.shape), A.new_empty(sequences, *A.shape)
    dD, dbias = A.new_empty(sequences, u.shape[2]), A.new_empty(sequences, u.shape[2])
    call.du, call.ddt, call.dz, call.dB, call.dC = map(library.view, (du, ddt, dz, dB, dC))
    call.dA, call.dD, call.dbias, call.dh = map(library.pointer, (dA, dD, dbias, dh))
    library.run("scan_backward", call)

    def absent() -> Tensor:
        return A.new_empty(0)

    def sum_of_parts(parts: Tensor | None, weights: Tensor | None) -> Tensor:
        if parts is None or weights is None:
            return absent()
        whole = parts.sum(2)
        return whole if whole.shape == weights.shape else whole.sum(0, keepdim=True)

    return (
        du,
        ddt,
        dA.sum(0),
        sum_of_parts(dB, B),
        sum_of_parts(dC, C),
        absent() if D is None else dD.sum(0),
        absent() if dz is None else dz,
        absent() if dt_bias is None else dbias.sum(0),
        absent() if h is None else dh,
    )


def _gradients_of_parts(weights: Tensor, call: library.Scan) -> Tensor:
    """Return room for the gradient of B or C from each part, (b, l, parts, g, n).

    Of constant ones from each sequence and part, (sequences, 1, parts, d, n).
    """
    batch, length, *rest = weights.shape
    first = call.sequences if (batch, length) == (1, 1) else batch
    return weights.new_zeros(first, length, call.parts, *rest)


def _backward_results(*arguments: Any) -> tuple[Tensor, ...]:
    A = arguments[2]
    return tuple(A.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments[:9])


def _refuse(ctx: Any, *gradients: Tensor | None) -> None:
    raise NotImplementedError(
        "the scan in C has no gradients of gradients; scan with GIGAVIM_SCAN=torch"
    )


torch.library.impl("gigavim::scan_forward", "CPU", _forward)
torch.library.impl("gigavim::scan_both", "CPU", _both)
torch.library.impl("gigavim::scan_backward", "CPU", _backward)
torch.library.register_fake("gigavim::scan_forward", _forward_results)
torch.library.register_fake("gigavim::scan_both", _both_results)
torch.library.register_fake("gigavim::scan_backward", _backward_results)
torch.library.register_autograd("gigavim::scan_forward", _differentiate, setup_context=_save)
torch.library.register_autograd("gigavim::scan_backward", _refuse)


def _prepare(inputs: _Inputs, options: list[bool]) -> tuple[_Inputs, library.Scan]:
    """Return the inputs as scan.c needs them, and a call that refers to their memory."""
    u, dt, A, B, C, D, z, dt_bias, h, offsets = inputs
    u, dt, B = map(library.dense_tokens, (u, dt, B))
    C, z = (None if x is None else library.dense_tokens(x) for x in (C, z))
    A = A.contiguous()
    D, dt_bias, h, offsets = (
        None if x is None else x.contiguous() for x in (D, dt_bias, h, offsets)
    )
    if offsets is not None:
        check_offsets(offsets, u.shape[1])
    inputs = _Inputs(u, dt, A, B, C, D, z, dt_bias, h, offsets)
    sequences, blocks, threads = inputs.sequences, inputs.blocks, torch.get_num_threads()
    # Parts enough for the threads to have equal work, also where sequences differ in length.
    equal = threads if offsets is not None else threads // math.gcd(threads, sequences)
    B_groups, C_groups = inputs.groups
    call = library.Scan(
        sequences=sequences,
        length=u.shape[1],
        channels=u.shape[2],
        states=A.shape[1],
        B_groups=B_groups,
        C_groups=C_groups,
        softplus=options[0],
        reverse=options[1],
        sharing=inputs.sharing,
        blocks=blocks,
        threads=threads,
        parts=min(equal, blocks),
        segments=1,
    )
    weights = B if C is None else C
    call.u, call.dt, call.B, call.C, call.z = map(library.view, (u, dt, B, weights, z))
    call.A, call.D, call.dt_bias, call.h, call.offsets = map(
        library.pointer, (A, D, dt_bias, h, offsets)
    )
    return inputs, call
