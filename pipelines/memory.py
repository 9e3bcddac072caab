"""How much memory a run takes, and what follows from a limit: where tokens wait, and in what parts.

The estimate, in bytes, for n tokens of width D and inner width E, is what the process has once the
image is planned, and

=========  =========================================================================================
always     `FIXED`, and `PER_TOKEN` n for the tables of where each patch is
reading    for each reader, its level pixels as they are and as float32, and four blocks of patches
mixing     the residual stream, 8 D (n + chunk), if it is in memory; 12 D chunk for the chunk that
           is mixed; 56 E `TILE` for what becomes of a tile of it on the CPU
cross      for cross blocks, in place of the first two of mixing: 4 (2 D + 3 E) (n + chunk), if it
           is in memory; (12 E + 256) chunk; and `PER_PLACE` n for the order of the columns
heads      features in half precision and those that are valid, 4 D n, for clusters
=========  =========================================================================================

of which reading, mixing and heads come one after the other. Images of few tokens are mixed in
memory: a kill then costs no more than a minute. Others are mixed from the disk whatever the limit,
so that a kill costs a chunk; the system's cache of the files is not the process's own memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from gigavim.config import Resources
from gigavim.errors import GigavimError
from gigavim.mixer import TILE
from gigavim.pipelines.encode import BLOCKS_HELD
from gigavim.pipelines.plan import Plan
from gigavim.streamed import INNER_TABLES, rows_like, rows_of

FIXED = 384 * 2**20
"""Zarr, Dask, scikit-learn, the sample that clusters are fitted to, pictures."""
PER_TOKEN = 64
PER_PLACE = 56
IN_MEMORY = 2**17
"""So many rows at most are mixed in host memory."""
FREE_SHARE = 0.6
"""Of the memory that is free: what a run takes without a limit, and the residual stream a GPU."""
CHUNK = {"cpu": 8 * TILE, "cuda": 2**17}
"""Tokens of a chunk where memory allows: long enough for the disk or the GPU, short to lose."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run may take, and how it keeps to that."""

    limit: int
    """Bytes of host memory."""
    expected: int
    """Largest resident memory, by the estimate."""
    chunk: int
    """Tokens of a chunk."""
    on_disk: bool
    """Whether the residual stream waits on the disk between layers, and a kill loses a chunk."""
    scratch: int
    """Bytes on the disk while the image is mixed."""


def plan_memory(plan: Plan, resources: Resources) -> MemoryPlan:
    """Fit a run into the memory that it may take.

    Without ``resources.max_memory`` that is 60 % of what is free, or the least that works.

    Raises
    ------
    GigavimError
        If the limit is too small; the message has the smallest that works.
    """
    encoder = plan.setup.model.encoder
    like = rows_like(encoder)
    device = like.device.type
    rows = rows_of(encoder, len(plan.sequence))
    row_bytes, inner_bytes = (
        size * like.element_size() for size in (encoder.config.width, encoder.config.inner)
    )
    cross = encoder.config.block == "cross"
    table_bytes = 2 * row_bytes + INNER_TABLES * inner_bytes * cross
    part_bytes = 3 * inner_bytes + 256 if cross else 3 * row_bytes
    now = int(psutil.Process().memory_info().rss)
    base = now + FIXED + (PER_TOKEN + PER_PLACE * cross) * len(plan.sequence)
    other = max(_reading(plan, resources.readers), _heads(plan))

    def expected(chunk: int, *, held: bool) -> int:
        working = 14 * inner_bytes * TILE
        if plan.tile is not None:
            return base + max(other, _blocks_held(plan) + working)
        tables = table_bytes * (rows + chunk) if held and device == "cpu" else 0
        return base + max(other, tables + part_bytes * chunk + working)

    smallest = expected(TILE, held=False)
    limit = resources.max_memory
    if limit is None:
        limit = max(smallest, now + int(FREE_SHARE * psutil.virtual_memory().available))
    if limit < smallest:
        raise GigavimError(
            f"{plan.setup.source.path}: --max-memory {_mib(limit)} is too little for its "
            f"{len(plan.sequence):,} tokens; the smallest that works is {_mib(_rounded(smallest))}"
        )
    # Whole tiles, so that the limit does not decide where the CPU's arithmetic is cut.
    whole = TILE * max(1, -(-rows // TILE))
    chunk = resources.chunk or min(CHUNK.get(device, CHUNK["cpu"]), whole)
    while chunk > TILE and expected(chunk, held=False) > limit:
        chunk = max(1, chunk // 2 // TILE) * TILE
    if device == "cuda":
        held = table_bytes * (rows + chunk) <= FREE_SHARE * torch.cuda.mem_get_info()[0]
    else:
        held = rows <= IN_MEMORY and expected(chunk, held=True) <= limit
    on_disk = plan.tile is None and not held
    return MemoryPlan(
        limit=limit,
        expected=expected(chunk, held=held),
        chunk=chunk,
        on_disk=on_disk,
        scratch=table_bytes * (rows + chunk) if on_disk else 0,
    )


def _reading(plan: Plan, readers: int) -> int:
    """Estimate what reading takes, for the block that takes most."""
    setup = plan.setup
    most = 0
    for block in plan.blocks:
        window = setup.grid.window(
            block.block.row, block.block.column, block.block.rows, block.block.columns
        )
        level = setup.plane.level_window(window)
        stored = len(setup.source.bands) * (setup.source.dtype.itemsize + 4)
        patches = len(block.cells) * setup.grid.patch**2 * 4 * setup.model.spec.architecture.bands
        most = max(most, level.height * level.width * stored + 4 * patches)
    return readers * most


def _heads(plan: Plan) -> int:
    """Estimate what heads take of features, half precision twice."""
    wanted = "clusters" in plan.setup.heads
    return 4 * plan.setup.model.encoder.config.width * len(plan.sequence) * wanted


def _blocks_held(plan: Plan) -> int:
    """Estimate what the blocks take that wait for rows to be put in order."""
    largest = max(len(block.cells) for block in plan.blocks)
    width = plan.setup.model.encoder.config.width
    return 4 * width * largest * min(BLOCKS_HELD, len(plan.blocks))


def _rounded(count: int) -> int:
    """Round up, by more than a process differs from one start to the next."""
    step = 64 * 2**20
    return -(-(count + step // 2) // step) * step


def _mib(count: int) -> str:
    """Write an amount so that --max-memory reads it back as no less."""
    return f"{-(-count // 2**20)}MiB"
