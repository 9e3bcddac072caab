"""``gigavim bench scan``: the implementations of the scan beside each other.

One direction of one Vim layer, as the encoder calls it: bias, softplus, skip and gate included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gigavim.bench.measure import best_in_turns
from gigavim.bench.show import Plot, Row
from gigavim.kernels import scan_backend, selective_scan

PLOT = Plot("scan", {"tokens_per_s": "tokens/s"}, lines=("pass", "threads"))


def bench_scan(
    *,
    tokens: int = 4096,
    channels: int = 384,
    states: int = 16,
    threads: Sequence[int] = (1,),
    rounds: int = 5,
) -> Iterator[Row]:
    """Time each scan that runs on this CPU, forward and with gradients.

    Parameters
    ----------
    tokens, channels, states
        Sizes; by default those of Vim-Ti.
    threads
        Numbers of threads to try.
    rounds
        The best counts.

    Yields
    ------
    row
        ``times_torch`` is the speed relative to the plain PyTorch scan in the same rounds.
    """
    inputs = vim_like(tokens, channels, states)
    names = ["reference", "torch"]
    if scan_backend("cpu", torch.float32).name == "c":
        names.append("c")
    before = torch.get_num_threads()
    try:
        for count in dict.fromkeys(threads):
            torch.set_num_threads(count)
            for title, work in {"forward": _forward, "forward+backward": _with_gradients}.items():
                turns: dict[str, Callable[[], object]] = {
                    name: partial(_by, name, work, inputs) for name in names
                }
                seconds = best_in_turns(turns, rounds)
                for name, best in seconds.items():
                    yield {
                        "scan": name,
                        "pass": title,
                        "threads": count,
                        "tokens_per_s": round(tokens / best),
                        "times_torch": round(seconds["torch"] / best, 2),
                    }
    finally:
        torch.set_num_threads(before)


def vim_like(tokens: int, channels: int, states: int) -> dict[str, Any]:
    """Return the inputs of one direction of one layer, its step sizes from 0.001 to 0.1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(1, tokens, channels),
        "dt": normal(1, tokens, channels) * 0.5,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": normal(1, tokens, states),
        "C": normal(1, tokens, states),
        "D": torch.ones(channels),
        "z": normal(1, tokens, channels),
        "dt_bias": torch.linspace(-7, -2.25, channels),  # softplus of it: 0.001 to 0.1
    }


def _by(name: str, work: Callable[[dict[str, Any]], None], inputs: dict[str, Any]) -> None:
    before = os.environ.get("GIGAVIM_SCAN")
    os.environ["GIGAVIM_SCAN"] = name
    try:
        work(inputs)
    finally:
        if before is None:
            del os.environ["GIGAVIM_SCAN"]
        else:
            os.environ["GIGAVIM_SCAN"] = before


def _forward(inputs: dict[str, Any]) -> None:
    with torch.inference_mode():
        selective_scan(**inputs, dt_softplus=True)


def _with_gradients(inputs: dict[str, Any]) -> None:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, _ = selective_scan(**leaves, dt_softplus=True)
    torch.autograd.backward(y.sum())
