"""The convolution in C (scan/conv.c) and its gradients, as operators of PyTorch.

The operators check nothing: call them through `gigavim.kernels.causal_conv`. They are whole to
``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gigavim.kernels.packed import check_offsets
from gigavim.kernels.scan import library

MOST_TAPS = 16
"""As in conv.c."""


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, reverse: bool, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `gigavim.kernels.causal_conv`, computed in float32 whatever the inputs are.

    Neither the number of threads nor where a sequence is cut changes a bit.
    """
    rows = library.in_rows(x)
    y, next_halo = torch.ops.gigavim.conv_forward.default(
        rows, weight.float(), bias.float(), halo.to(rows.dtype), offsets, reverse
    )
    return y.to(x.dtype), next_halo.to(x.dtype)


torch.library.define(
    "gigavim::conv_forward",
    "(Tensor x, Tensor weight, Tensor bias, Tensor halo, Tensor? offsets, bool reverse)"
    " -> (Tensor y, Tensor next_halo)",
)
torch.library.define(
    "gigavim::conv_backward",
    "(Tensor x, Tensor weight, Tensor bias, Tensor halo, Tensor? offsets, bool reverse, Tensor dy,"
    " Tensor dnext_halo) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dhalo)",
)

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, offsets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    # Its name keeps in memory what the call refers to.
    _kept, call = _prepare(x, weight, bias, halo, offsets, reverse)
    y, next_halo = x.new_empty(x.shape), halo.new_empty(halo.shape)
    call.y, call.next = library.view(y), library.view(next_halo)
    library.run("conv_forward", call)
    return y, next_halo


def _backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    halo: Tensor,
    offsets: Tensor | None,
    reverse: bool,
    dy: Tensor,
    dnext_halo: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands, forward = _prepare(x, weight, bias, halo, offsets, reverse)
    dy, dnext_halo = library.dense_tokens(dy), dnext_halo.contiguous()
    dx, dhalo = x.new_empty(x.shape), halo.new_empty(halo.shape)
    dweight = weight.new_empty(halo.shape[0], *operands[1].shape)
    dbias = bias.new_empty(halo.shape[0], *bias.shape)
    call = library.ConvBackward(conv=forward)
    views = map(library.view, (dy, dnext_halo, dx, dhalo))
    call.dy, call.dnext, call.dx, call.dhalo = views
    call.dweight, call.dbias = library.pointer(dweight), library.pointer(dbias)
    library.run("conv_backward", call)
    return dx, dweight.sum(0).T.contiguous(), dbias.sum(0), dhalo


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, offsets: Tensor | None, reverse: bool
) -> tuple[Operands, library.Conv]:
    """Return the inputs as conv.c needs them, and a call that refers to their memory."""
    if offsets is not None:
        check_offsets(offsets, x.shape[1])
        offsets = offsets.contiguous()
    x, halo = library.dense_tokens(x), halo.contiguous()
    weight, bias = weight.T.contiguous(), bias.contiguous()
    call = library.Conv(
        sequences=halo.shape[0],
        length=x.shape[1],
        channels=x.shape[2],
        taps=weight.shape[0],
        reverse=reverse,
        threads=torch.get_num_threads(),
    )
    call.offsets, call.weight, call.bias = map(library.pointer, (offsets, weight, bias))
    call.x, call.halo = library.view(x), library.view(halo)
    return (x, weight, bias, halo, offsets), call


def _forward_results(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *_: Any) -> Any:
    return x.new_empty(x.shape), halo.new_empty(halo.shape)


def _backward_results(*inputs: Any) -> Any:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:4])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor, dnext_halo: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.gigavim.conv_backward.default(
        *ctx.saved_tensors, ctx.reverse, dy, dnext_halo
    )
    return *gradients, None, None


def _refuse(ctx: Any, *gradients: Tensor | None) -> None:
    raise NotImplementedError(
        "the convolution in C has no gradients of gradients; run with GIGAVIM_SCAN=torch"
    )


torch.library.impl("gigavim::conv_forward", "CPU", _forward)
torch.library.impl("gigavim::conv_backward", "CPU", _backward)
torch.library.register_fake("gigavim::conv_forward", _forward_results)
torch.library.register_fake("gigavim::conv_backward", _backward_results)
torch.library.register_autograd("gigavim::conv_forward", _differentiate, setup_context=_save)
torch.library.register_autograd("gigavim::conv_backward", _refuse)
