"""In which precision the matrix products of the encoder are computed."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch

from gigavim.config import Precision

__all__ = ["Precision", "Products", "product_precision", "products_in"]


class Products(NamedTuple):
    """What matrix products are computed in, and why."""

    precision: Precision
    reason: str
    """For people, for instance to be printed by ``gigavim doctor``."""


def product_precision(device: torch.device | str, asked: Precision = "float32") -> Products:
    """Return what products are computed in on a device, where `asked` is asked for.

    A CPU without bfloat16 arithmetic computes in float32, which is faster there, and more exact.

    Raises
    ------
    ValueError
        If there is no such precision.
    """
    if asked not in get_args(Precision):
        raise ValueError(f"precision is {' or '.join(get_args(Precision))}, not {asked}")
    if asked == "float32":
        return Products("float32", "unless bfloat16 is asked for")
    if not _has_bfloat16(torch.device(device)):
        return Products("float32", f"this {torch.device(device).type} has no bfloat16 arithmetic")
    return Products("bfloat16", "asked for")


def products_in(precision: Precision, device: torch.device | str) -> torch.autocast:
    """Return a context in which the encoder's matrix products run in a precision.

    Norms, residual stream, step sizes and scan states stay in float32. Features then differ from
    those in float32 by about a hundredth of their size.

    Raises
    ------
    ValueError
        If there is no such precision.
    """
    enabled = product_precision(device, precision).precision == "bfloat16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # On other processors PyTorch computes bfloat16 by way of float32, slowly.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
