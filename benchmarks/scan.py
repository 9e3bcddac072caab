"""Times the scans side by side: ``python benchmarks/scan.py``, one JSON line a result.

One direction of one Vim layer, as the encoder calls it: bias, softplus, skip and gate included. The
implementations take turns, and the best of all rounds counts, so that other load meets all of them.
`times_torch` is the speed relative to the plain PyTorch scan in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gigavim.kernels import scan_backend, selective_scan

BACKENDS = ("reference", "torch", "c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    inputs = vim_like(args.tokens, args.channels, args.states)
    passes = {"forward": forward, "forward+backward": forward_and_backward}
    for threads in dict.fromkeys(args.threads):
        torch.set_num_threads(threads)
        for name, work in passes.items():
            seconds = best_of(args.rounds, inputs, work)
            for backend, best in seconds.items():
                result = {
                    "benchmark": "scan",
                    "pass": name,
                    "backend": backend,
                    "threads": threads,
                    "tokens": args.tokens,
                    "channels": args.channels,
                    "states": args.states,
                    "tokens_per_s": round(args.tokens / best),
                    "times_torch": round(seconds["torch"] / best, 2),
                    "runs_on": torch.backends.cpu.get_cpu_capability(),
                }
                print(json.dumps(result), flush=True)


def vim_like(tokens: int, channels: int, states: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    step = torch.empty(channels).uniform_(-7, -2.25)  # softplus of it: 0.001 to 0.1
    return {
        "u": torch.randn(1, tokens, channels),
        "dt": torch.randn(1, tokens, channels) * 0.5,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(1, tokens, states),
        "C": torch.randn(1, tokens, states),
        "D": torch.ones(channels),
        "z": torch.randn(1, tokens, channels),
        "dt_bias": step,
    }


def forward(inputs: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        selective_scan(**inputs, dt_softplus=True)


def forward_and_backward(inputs: dict[str, Tensor]) -> None:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, _ = selective_scan(**leaves, dt_softplus=True)
    y.sum().backward()


def best_of(
    rounds: int, inputs: dict[str, Tensor], work: Callable[[dict[str, Tensor]], None]
) -> dict[str, float]:
    backends = list(BACKENDS)
    if scan_backend("cpu", torch.float32).name != "c":
        backends.remove("c")
    best = dict.fromkeys(backends, float("inf"))
    for _ in range(rounds):
        for backend in backends:
            os.environ["GIGAVIM_SCAN"] = backend
            start = time.perf_counter()
            work(inputs)
            best[backend] = min(best[backend], time.perf_counter() - start)
    del os.environ["GIGAVIM_SCAN"]
    return best


if __name__ == "__main__":
    main()
