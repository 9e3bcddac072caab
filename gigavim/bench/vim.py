"""``gigavim bench vim``: Vim-Ti beside DeiT-Ti, by the size of the image.

Weights are random, which changes nothing about speed. DeiT-Ti (Touvron et al. 2021, arXiv
2012.12877) is that of timm, with PyTorch's fused attention; without timm, Vim-Ti runs alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from gigavim.bench.measure import PeakMemory, alone, best_of
from gigavim.bench.show import Plot, Row
from gigavim.kernels import scan_backend
from gigavim.memory import keep_freed_memory
from gigavim.models import vim_tiny
from gigavim.precision import Precision, product_precision, products_in

SIDES = (224, 384, 512, 768, 1024, 1248, 1536, 2048)
"""Sides of square images, in pixels."""
MODELS = ("Vim-Ti", "DeiT-Ti")
PATCH = 16
PLOT = Plot(
    "tokens",
    {"seconds": "seconds of an image", "peak_mib": "MiB above model and image"},
    lines=("model", "products"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One model on images of one size."""

    model: str
    side: int
    """Of the square images, in pixels."""
    batch: int = 1
    threads: int = 1
    products: Precision = "float32"
    scan: str = ""
    """What ``GIGAVIM_SCAN`` is set to."""


def bench_vim(
    *,
    sides: Sequence[int] = SIDES,
    batch: int = 1,
    threads: int | None = None,
    products: Sequence[Precision] = ("float32", "bfloat16"),
    rounds: int = 3,
) -> Iterator[Row]:
    """Time Vim-Ti and, where timm is, DeiT-Ti on this CPU, each size in a process of its own.

    Parameters
    ----------
    sides
        Of the square images, in pixels.
    batch
        Images in a batch.
    threads
        As many as PyTorch takes by default.
    products
        What matrix products are computed in; what the CPU cannot is left out.
    rounds
        At least; more while they take less than two seconds. The best counts.

    Yields
    ------
    row
        Time, and the highest memory above that of model and images.
    """
    models = list(MODELS)
    if importlib.util.find_spec("timm") is None:
        print("no DeiT-Ti to compare with: pip install timm", file=sys.stderr)
        models.remove("DeiT-Ti")
    count = torch.get_num_threads() if threads is None else threads
    possible = dict.fromkeys(product_precision("cpu", one).precision for one in products)
    for side in sides:
        for model in models:
            for one in possible:
                yield alone(measure, Case(model, side, batch, count, one), rounds)


def measure(case: Case, rounds: int) -> Row:
    """Run one case in this process; `alone` gives it one of its own."""
    keep_freed_memory()  # as `gigavim` does
    torch.set_num_threads(case.threads)
    if case.scan:
        os.environ["GIGAVIM_SCAN"] = case.scan
    torch.manual_seed(0)
    model = _model(case.model, case.side)
    images = torch.randn(case.batch, 3, case.side, case.side)
    with torch.inference_mode(), products_in(case.products, "cpu"):
        # What is loaded on first use is no memory of the image's; a DeiT has images of one size.
        nn.Linear(PATCH, PATCH)(torch.randn(PATCH, PATCH))
        if case.model == "Vim-Ti":
            model(torch.randn(1, 3, PATCH, PATCH))
        with PeakMemory() as peak:
            model(images)
        seconds, cpu_s = best_of(lambda: model(images), least=rounds, seconds=2)
    tokens = (case.side // PATCH) ** 2
    return {
        **asdict(case),
        "scan": scan_backend("cpu", torch.float32).name if case.model == "Vim-Ti" else "",
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "cpu_s": round(cpu_s, 4),
        "us_per_token": round(seconds / (case.batch * tokens) * 1e6, 1),
        "peak_mib": round(peak.mib),
    }


def _model(name: str, side: int) -> nn.Module:
    if name == "Vim-Ti":
        return vim_tiny().eval()
    timm = importlib.import_module("timm")
    model: nn.Module = timm.create_model("deit_tiny_patch16_224", img_size=side)
    return model.eval()
