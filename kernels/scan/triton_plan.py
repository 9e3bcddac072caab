"""Cuts sequences into chunks, and chunks into programs of the kernels in Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gigavim.kernels.scan.triton_scan import Inputs
from gigavim.kernels.scan.triton_tile import Chunks


class Launch(NamedTuple):
    """How a kernel is cut into programs."""

    channels: int
    """In a program; a power of two."""
    tokens: int
    """Unrolled in the innermost loop: a power of two, 16 at most."""
    warps: int = 1
    stages: int = 1


# Predicted from the machine code (registers, no spills, instructions); not tuned on a GPU yet.
# `python benchmarks/gpu.py tune` measures the alternatives.
TUNED = {
    "summarise": Launch(channels=64, tokens=4),
    "prefix": Launch(channels=32, tokens=1),
    "scan": Launch(channels=64, tokens=4),
    "spoil": Launch(channels=32, tokens=1, warps=4),
    "backward": Launch(channels=32, tokens=2),
}
WARPS_PER_PROCESSOR = 18
"""Programs that hide the latency of memory behind one another; predicted as well."""
SHORTEST_CHUNK = 1024
"""Tokens for which two more phases are worth their launches; predicted as well."""
SEGMENT = 16
"""Tokens between two states that the backward pass starts from; chunks are multiples of it."""


class Plan(NamedTuple):
    """How the sequences are cut, and what all their launches share."""

    chunks: Chunks
    chunk_count: int
    """Chunks, or for packed sequences a bound on them."""
    sequences: int
    whole: bool
    """Whether every sequence is one chunk."""
    few: bool
    """Whether there are too few programs to fill the GPU."""
    softplus: bool
    reverse: Sequence[bool]


def plan_chunks(
    directions: Sequence[Inputs],
    offsets: Tensor | None,
    softplus: bool,
    reverse: Sequence[bool],
    chunk: int,
) -> Plan:
    """Cut the sequences into chunks: as few as fill the GPU, or of a given number of tokens."""
    batch, length, channels = directions[0].u.shape
    tokens = batch * length
    sequences = batch if offsets is None else len(offsets) - 1
    warps = WARPS_PER_PROCESSOR * processors(directions[0].u.device)
    columns = len(directions) * triton.cdiv(channels, TUNED["scan"].channels)
    size = chunk or max(SHORTEST_CHUNK, triton.cdiv(tokens * columns, warps))
    if offsets is None:
        per_sequence = triton.cdiv(length, size)
        # The phases before the last one cost as much as it does: two or three chunks gain nothing.
        if per_sequence < 4 and not chunk:
            per_sequence = 1
        size = chunk or triton.cdiv(length, per_sequence)
    size = triton.cdiv(size, SEGMENT) * SEGMENT
    if offsets is None:
        count = sequences * per_sequence
        chunks = Chunks(size, length, per_sequence, None, None)
    else:
        per_sequence = 0
        count = tokens // size + sequences
        chunks = Chunks(size, 0, 0, *_table(offsets, size, count))
    few = count * columns < warps
    return Plan(chunks, count, sequences, per_sequence == 1, few, softplus, reverse)


def _table(offsets: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return sequence, start and stop of each chunk, and each sequence's first chunk."""
    ends = ((offsets.diff() + size - 1) // size).cumsum(0)
    first = torch.cat([ends.new_zeros(1), ends])
    chunk = torch.arange(count, device=offsets.device)
    sequence = torch.searchsorted(ends, chunk, right=True).clamp_(max=len(ends) - 1)
    start = offsets[sequence] + (chunk - first[sequence]) * size
    stop = torch.minimum(start + size, offsets[sequence + 1])
    start = torch.where(chunk < ends[-1], start, stop)
    return torch.stack([sequence, start, stop], 1), first


def processors(device: torch.device) -> int:
    """Return how many multiprocessors the GPU has."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def channel_block(name: str, plan: Plan, x: Inputs) -> int:
    """Return how many channels a program takes: no more than share B and C."""
    channels = x.A.shape[0]
    block = TUNED[name].channels
    # More programs hide latency better, where all of them together do not fill the GPU.
    block = min(block, 32 if plan.few else block, triton.next_power_of_2(channels))
    for weights in (x.B, x.C):
        if weights is not None and weights.ndim == 4 and weights.shape[2] > 1:
            block = math.gcd(block, channels // weights.shape[2])
    return block
