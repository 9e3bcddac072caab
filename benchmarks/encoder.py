"""The encoder's figures: ``python benchmarks/encoder.py [reference|tokens|floor]``, by default all.

- reference: images of 224 px, by the scan in use and by its definition;
- tokens: time of a token and memory by the length of the sequence, whole and in chunks;
- floor: a long sequence on one core, beside what its parts take alone and in the cache.

One JSON line a result. What `gigavim bench vim` measures beside another model is not repeated here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from gigavim.bench import Row
from gigavim.bench.measure import PeakMemory, alone, best_in_turns, best_of
from gigavim.bench.vim import Case, measure
from gigavim.kernels import scan_backend, selective_scan
from gigavim.memory import keep_freed_memory
from gigavim.models import vim_tiny
from gigavim.precision import Precision, products_in

D, E, N, R, DEPTH = 192, 384, 16, 12, 24
PRODUCTS: tuple[Precision, ...] = ("float32", "bfloat16")


def main() -> None:
    figures = {"reference": reference, "tokens": tokens, "floor": floor}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", help=", ".join(figures))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="the best counts")
    args = parser.parse_args()
    for name in args.figures or figures:
        for row in figures[name](args.threads, args.rounds):
            print(json.dumps({"benchmark": f"encoder {name}", **row}), flush=True)


def reference(threads: int, rounds: int) -> Iterator[Row]:
    seconds = {}
    for scan in ("reference", scan_backend("cpu", torch.float32).name):
        case = Case("Vim-Ti", 224, batch=8, threads=threads, scan=scan)
        row = alone(measure, case, rounds)
        seconds[scan] = float(row["seconds"])
        yield {**row, "times_reference": round(seconds["reference"] / seconds[scan], 1)}


def tokens(threads: int, rounds: int) -> Iterator[Row]:
    for products in PRODUCTS:
        for power in range(10, 18):
            yield alone(mix, 2**power, None, threads, products, rounds)
        for chunk in (1024, 16_384):
            yield alone(mix, 2**16, chunk, threads, products, rounds)


def mix(length: int, chunk: int | None, threads: int, products: Precision, rounds: int) -> Row:
    keep_freed_memory()  # as `gigavim` does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder = vim_tiny(classes=0).eval()
    sequence = torch.randn(1, length, D)
    with torch.inference_mode(), products_in(products, "cpu"):
        encoder.mix(sequence[:, :64])  # loads what is loaded on first use
        with PeakMemory() as peak:
            encoder.mix(sequence, chunk=chunk)
        seconds, cpu_s = best_of(
            lambda: encoder.mix(sequence, chunk=chunk), least=rounds, seconds=2
        )
    return {
        "tokens": length,
        "chunk": chunk or length,
        "threads": threads,
        "products": products,
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu_s, 3),
        "us_per_token": round(seconds / length * 1e6, 1),
        "tokens_per_s": round(length / seconds),
        "peak_mib": round(peak.mib),
        "scan": scan_backend("cpu", torch.float32).name,
    }


def floor(threads: int, rounds: int) -> Iterator[Row]:
    for products in PRODUCTS:
        us = alone(parts, threads, products, rounds)
        whole = alone(mix, 2**14, None, threads, products, rounds)
        best = sum(us.values())
        yield {
            **whole,
            **{f"{name}_us": round(value, 1) for name, value in us.items()},
            "floor_us": round(best, 1),
            "of_floor": round(best / float(whole["us_per_token"]), 2),
        }


def parts(threads: int, products: Precision, rounds: int) -> dict[str, float]:
    """Return the microseconds of a token that the parts of all blocks take alone, in the cache.

    Norm and convolution are left out: together they are less than a tenth.
    """
    torch.set_num_threads(threads)
    length = 1024
    inner, step, gate = torch.randn(3, 1, length, E).unbind()
    weights = torch.randn(1, length, N)
    A, bias = -torch.arange(1.0, N + 1).repeat(E, 1), torch.linspace(-7, -2.25, E)
    linear = {
        "in_proj": (nn.Linear(D, 2 * E), torch.randn(1, length, D)),
        "x_proj": (nn.Linear(E, R + 2 * N), inner),
        "dt_proj": (nn.Linear(R, E), torch.randn(1, length, R)),
        "out_proj": (nn.Linear(E, D), inner),
    }
    half = torch.bfloat16 if products == "bfloat16" else torch.float32
    work: dict[str, Callable[[], object]] = {
        name: partial(layer.to(half), given.to(half)) for name, (layer, given) in linear.items()
    }
    work["scan"] = partial(
        selective_scan, inner, step, A, weights, weights, bias, gate, bias, dt_softplus=True
    )
    with torch.inference_mode():
        seconds = best_in_turns(work, 50 * rounds)
    both = {"x_proj", "dt_proj", "scan"}  # each direction has its own
    return {
        name: DEPTH * (2 if name in both else 1) * s / length * 1e6 for name, s in seconds.items()
    }


if __name__ == "__main__":
    main()
