"""How the kernels around the scans are cut into programs."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How a kernel is cut into programs; all but stages are powers of two."""

    tokens: int
    """In a program."""
    block: int
    """Numbers or channels of a token that are multiplied at a time."""
    outputs: int
    """Numbers of a token that are accumulated at a time; `conv_project` needs all at once."""
    warps: int
    stages: int
    """Blocks that are on their way at a time."""


# By the bytes of a number in the products. Predicted from the machine code (registers, no spills,
# shared memory); not tuned on a GPU yet. `python benchmarks/gpu.py tune` measures the alternatives.
TUNED = {
    ("norm_project", 2): Launch(tokens=64, block=32, outputs=128, warps=8, stages=3),
    ("norm_project", 4): Launch(tokens=32, block=32, outputs=64, warps=4, stages=2),
    ("conv_project", 2): Launch(tokens=64, block=32, outputs=256, warps=4, stages=2),
    ("conv_project", 4): Launch(tokens=32, block=32, outputs=256, warps=8, stages=1),
    ("gate_project", 2): Launch(tokens=64, block=32, outputs=128, warps=8, stages=2),
    ("gate_project", 4): Launch(tokens=32, block=32, outputs=128, warps=8, stages=1),
}


def launch_of(name: str, dtype: torch.dtype) -> Launch:
    """Return how a kernel is launched whose products are in a dtype."""
    return TUNED[name, min(4, dtype.itemsize)]
