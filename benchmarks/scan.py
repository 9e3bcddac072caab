"""Times the scans side by side: ``python benchmarks/scan.py``, one JSON line a result.

One direction of one Vim layer, as the encoder calls it: bias, softplus, skip and gate included. The
implementations take turns, and the best of all rounds counts, so that other load meets all of them.
`times_reference` is the speed relative to the token loop in PyTorch in the same run. mambapy's
parallel scan takes part where it is installed (``pip install mambapy==1.2.0``).

`of_port_limit` is the share of what a core could do if it did nothing but the multiplications of
the scan: 10 for each state of a channel, and 30 for its softplus, skip and gate. On a machine that
is shared, set OMP_WAIT_POLICY to PASSIVE.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from gigavim.bench.scan import vim_like
from gigavim.kernels import scan_backend, selective_scan

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

Inputs = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--gflops", type=float, default=117.6, help="what a core can do in float32, all FMA"
    )
    args = parser.parse_args()

    if pscan is None:
        print(json.dumps({"benchmark": "scan", "skipped": "mambapy, which is not installed"}))
    inputs = vim_like(args.tokens, args.channels, args.states)
    multiplications = args.channels * (10 * args.states + 30)
    limit = args.gflops * 1e9 / 2 / multiplications
    passes = {"forward": forward, "forward+backward": forward_and_backward}
    memory = peak_memory(args.tokens, args.channels, args.states)
    for threads in dict.fromkeys(args.threads):
        torch.set_num_threads(threads)
        for name, work in passes.items():
            seconds = best_of(args.rounds, inputs, work)
            for scan, best in seconds.items():
                speed = args.tokens / best
                result = {
                    "benchmark": "scan",
                    "pass": name,
                    "scan": scan,
                    "threads": threads,
                    "tokens": args.tokens,
                    "channels": args.channels,
                    "states": args.states,
                    "tokens_per_s": round(speed),
                    "times_reference": round(seconds["reference"] / best, 2),
                    "runs_on": torch.backends.cpu.get_cpu_capability(),
                }
                if name == "forward":
                    result["of_port_limit"] = round(speed / limit / threads, 3)
                else:
                    result["peak_mib"] = round(memory[scan] / 2**20, 1)
                print(json.dumps(result), flush=True)


def scan_with(name: str, inputs: Inputs) -> Tensor:
    if name == "mambapy":
        return mambapy_scan(**inputs)
    os.environ["GIGAVIM_SCAN"] = name
    return selective_scan(**inputs, dt_softplus=True)[0]


def mambapy_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    """Scan as the Mamba block of mambapy does."""
    step = softplus(dt + dt_bias)
    drive = step[..., None] * B[:, :, None] * u[..., None]
    states = pscan(torch.exp(step[..., None] * A), drive)
    return ((states @ C[..., None]).squeeze(3) + D * u) * silu(z)


def forward(name: str, inputs: Inputs) -> None:
    with torch.inference_mode():
        scan_with(name, inputs)


def forward_and_backward(name: str, inputs: Inputs) -> None:
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in inputs.items()}
    scan_with(name, leaves).sum().backward()


def contestants() -> list[str]:
    names = ["reference", "torch"]
    if scan_backend("cpu", torch.float32).name == "c":
        names.append("c")
    return names if pscan is None else [*names, "mambapy"]


def best_of(rounds: int, inputs: Inputs, work: Callable[[str, Inputs], None]) -> dict[str, float]:
    best = dict.fromkeys(contestants(), float("inf"))
    for _ in range(rounds):
        for name in best:
            # The fast ones as often as fits in the time of the slow ones, or luck would count.
            turn_ends = time.perf_counter() + 0.3
            while True:
                start = time.perf_counter()
                work(name, inputs)
                stop = time.perf_counter()
                best[name] = min(best[name], stop - start)
                if stop > turn_ends:
                    break
    os.environ.pop("GIGAVIM_SCAN", None)
    return best


def peak_memory(tokens: int, channels: int, states: int) -> dict[str, int]:
    """Return the bytes that both passes take beyond the inputs, each scan in its own process."""
    arguments = [(name, tokens, channels, states) for name in contestants()]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_of, arguments, chunksize=1)
    return dict(zip(contestants(), peaks, strict=True))


def peak_of(name: str, tokens: int, channels: int, states: int) -> int:
    torch.set_num_threads(1)
    forward_and_backward(name, vim_like(64, channels, states))  # loads what is loaded late
    leaves = {k: v.requires_grad_() for k, v in vim_like(tokens, channels, states).items()}
    before = psutil.Process().memory_info().rss
    scan_with(name, leaves).sum().backward()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


if __name__ == "__main__":
    main()
