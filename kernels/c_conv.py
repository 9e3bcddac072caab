"""The convolution in C (scan/conv.c), with the gradients of PyTorch's, as an operator of PyTorch.

``torch.ops.gigavim.conv_forward`` checks nothing: call it through `gigavim.kernels.causal_conv`. It
is whole to ``torch.compile`` and ``torch.export``, but for gradients of packed sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gigavim.kernels import torch_conv
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


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, offsets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    if offsets is not None:
        check_offsets(offsets, x.shape[1])
        offsets = offsets.contiguous()
    x, halo = library.dense_tokens(x), halo.contiguous()
    weight, bias = weight.T.contiguous(), bias.contiguous()
    y, next_halo = x.new_empty(x.shape), torch.empty_like(halo)
    call = library.Conv(
        sequences=halo.shape[0],
        length=x.shape[1],
        channels=x.shape[2],
        taps=weight.shape[0],
        reverse=reverse,
        threads=torch.get_num_threads(),
    )
    call.offsets, call.weight, call.bias = map(library.pointer, (offsets, weight, bias))
    call.x, call.halo, call.y, call.next = map(library.view, (x, halo, y, next_halo))
    library.run("conv_forward", call)
    return y, next_halo


def _forward_results(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, offsets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), halo.new_empty(halo.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor, dhalo: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate what PyTorch computes, again; training spends its time elsewhere."""
    x, weight, bias, halo, offsets = ctx.saved_tensors
    needed = ctx.needs_input_grad
    wanted = [tensor for tensor, one in zip((x, weight, bias, halo), needed, strict=False) if one]
    with torch.enable_grad():
        outputs = torch_conv.causal_conv(x, weight, bias, halo, ctx.reverse, offsets)
    # Without a token, or with one tap, not all inputs have a part in it.
    found = iter(torch.autograd.grad(outputs, wanted, (dy, dhalo), materialize_grads=True))
    return tuple(next(found) if one else None for one in needed)


torch.library.impl("gigavim::conv_forward", "CPU", _forward)
torch.library.register_fake("gigavim::conv_forward", _forward_results)
torch.library.register_autograd("gigavim::conv_forward", _differentiate, setup_context=_save)
