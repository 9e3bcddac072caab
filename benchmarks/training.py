"""One step of fine-tuning Vim-Ti on a sequence of any length: seconds, peak memory, scratch.

``python benchmarks/training.py [TOKENS ...]``, by default 30,000, 100,000 and 1,000,000. Prints one
JSON line a length, each from a process of its own. All parameters are trained, the patch embedding
included: pixels (random, the same again when gradients ask for them), tokens, the encoder, a class
for each token, its cross-entropy, backward, AdamW. What is remembered goes to the folder that
SCRATCH names, by default the current one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gigavim import recompute
from gigavim.bench import Row
from gigavim.bench.measure import alone
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.memory import keep_freed_memory
from gigavim.mixer import TILE

FOLDER = Path(os.environ.get("SCRATCH", "."))
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", nargs="*", type=int, default=[30_000, 100_000, 1_000_000])
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--chunk", type=int, default=TILE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    for length in args.tokens:
        row = alone(step, length, args.depth, args.chunk, args.threads)
        print(json.dumps({"benchmark": "training", **row}), flush=True)


def step(length: int, depth: int, chunk: int, threads: int) -> Row:
    keep_freed_memory()  # as `gigavim` does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder = VisionMamba(VisionMambaConfig(depth=depth, classes=0))
    head = nn.Linear(encoder.config.width, CLASSES)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    before = encoder.patch_embed.proj.weight.detach().clone()
    start_mib = status_mib("VmHWM")

    started, cpu_started = time.perf_counter(), time.process_time()
    tokens = recompute.embed(encoder, pixels, length, chunk=chunk)[None]
    features = recompute.mix(encoder, tokens, chunk=chunk, folder=FOLDER)
    logits = recompute.in_chunks(head, features.tokens, chunk)[0]
    loss = nn.functional.cross_entropy(logits, torch.arange(length) % CLASSES)
    forward = time.perf_counter() - started
    loss.backward()
    optimiser.step()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started

    assert not torch.equal(before, encoder.patch_embed.proj.weight)
    return {
        "tokens": length,
        "depth": depth,
        "chunk": chunk,
        "threads": threads,
        "loss": round(loss.item(), 4),
        "forward_s": round(forward, 1),
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "us_per_token": round(seconds / length * 1e6, 1),
        "start_mib": round(start_mib),
        "peak_mib": round(status_mib("VmHWM")),
        "stream_mib": round(length * encoder.config.width * 4 / 2**20),
    }


def pixels(start: int, stop: int) -> Tensor:
    """Stand for patches that are read from an image."""
    generator = torch.Generator().manual_seed(start)
    return torch.randn(stop - start, 16, 16, 3, generator=generator)


def status_mib(name: str) -> float:
    """Of this process; unlike getrusage, Linux does not pass a parent's peak on here."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
