"""How much memory a run takes, and what follows from a limit: where tokens wait, and in what parts.

The estimate, in bytes, for n tokens of width D and inner width E, is what the process has once the
image is planned, and

=========  =========================================================================================
always     `FIXED`, and `PER_TOKEN` n for the tables of where each patch is
scenes     what GDAL keeps of decoded blocks
reading    for each reader, its level pixels as they are and as float32, and four blocks of patches
mixing     the residual stream, 8 D (n + chunk), if it is in memory; 12 D chunk for the chunk that
           is mixed; 56 E `TILE` for what becomes of a tile of it on the CPU
cross      for cross blocks, in place of the first two of mixing: 4 (2 D + 3 E) (n + chunk), if it
           is in memory; (12 E + 256) chunk; and `PER_PLACE` n for the order of the columns
nuclei     where they are looked for, `NUCLEI` for a window of them
on a GPU   the weights; a block of patches; the residual stream, if it is there; and for each token
           of a chunk 12 D (12 E + 256 for cross blocks) and 56 E
=========  =========================================================================================

of which reading, mixing and nuclei come one after the other. Images of few tokens are mixed in
memory: a kill then costs seconds. Others are mixed from the disk whatever the limit, so that a kill
costs a chunk of a layer; the system's cache of the files is not the process's own memory. A GPU is
quick enough to be killed: its tables wait on it while they fit, else in page-locked host memory
while they fit there, else on the disk. PyTorch rounds page-locked memory up to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from gigavim.config import Resources
from gigavim.errors import GigavimError
from gigavim.mixer import TILE
from gigavim.pipelines.encode import BLOCKS_HELD
from gigavim.pipelines.plan import Plan
from gigavim.sources.gdal_cache import cache_limit
from gigavim.streamed import INNER_TABLES, Place, rows_like, rows_of

FIXED = 384 * 2**20
"""Zarr, Dask, scikit-learn, the sample that clusters are fitted to, pictures."""
NUCLEI = 512 * 2**20
"""Pixels that are read ahead, what the decoder makes of a part, the maps and their watershed."""
PER_TOKEN = 64
PER_PLACE = 56
"""For cross blocks, while the order of the columns is sorted; 24 of them stay."""
IN_MEMORY = 8 * TILE
"""So many rows at most are mixed in host memory on the CPU: what is lost in a kill is seconds."""
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
    residual_on: Place
    """Where the residual stream waits between layers; on the disk a kill loses a chunk."""
    device_limit: int | None
    """Bytes of a GPU's memory; None on the CPU."""
    device_expected: int | None
    """Most of them allocated at once, by the estimate."""
    scratch: int
    """Bytes on the disk while the image is mixed."""


class Memory(NamedTuple):
    """Of the host or of a GPU, in bytes."""

    taken: int
    free: int
    limit: int | None
    """What the user allows."""

    def allowed(self, smallest: int) -> int:
        """Return the limit; without one, what leaves something to others, `smallest` at least."""
        if self.limit is None:
            return max(smallest, self.taken + int(FREE_SHARE * self.free))
        return self.limit


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run takes, in bytes, wherever and in whatever parts it is mixed."""

    rows: int
    """Of the sequence with its class tokens; 0 where tiles are mixed, each in memory."""
    tables: tuple[int, ...]
    """A row of each table of the scratch."""
    part: int
    """A token of the chunk that is mixed, as rows of tables."""
    working: int
    """A token that is mixed, in between."""
    host: int
    """In host memory throughout."""
    host_beside: int
    """There before or after the mixing."""
    weights: int
    """On a GPU throughout."""
    embedding: int
    """There before the mixing."""

    def scratch(self, chunk: int) -> int:
        """Return the size of all tables."""
        return sum(self.tables) * (self.rows + chunk)

    def on_host(self, chunk: int, place: Place, *, pinned: bool) -> int:
        """Return the most host memory that is taken at once."""
        tables = [row * (self.rows + chunk) for row in self.tables] if place == "host" else []
        if pinned:
            tables = [1 << (size - 1).bit_length() for size in tables]
        mixing = sum(tables) + self.part * chunk + self.working * TILE
        return self.host + max(self.host_beside, mixing)

    def on_device(self, chunk: int, place: Place) -> int:
        """Return the most memory of a GPU that is taken at once."""
        tables = self.scratch(chunk) if place == "device" else 0
        mixing = tables + (self.part + self.working) * chunk
        return self.weights + max(self.embedding, mixing)


def plan_memory(plan: Plan, resources: Resources) -> MemoryPlan:
    """Fit a run into the memory that it may take.

    Without limits that is 60 % of what is free, or the least that works.

    Raises
    ------
    GigavimError
        If a limit is too small; the message has the smallest that works.
    """
    like = rows_like(plan.setup.model.encoder)
    host = Memory(
        int(psutil.Process().memory_info().rss),
        psutil.virtual_memory().available,
        resources.max_memory,
    )
    costs = _costs(plan, host.taken, resources.readers)
    device = None
    if like.is_cuda:
        free, _ = torch.cuda.mem_get_info(like.device)
        device = Memory(costs.weights, free, resources.max_device_memory)
    elif resources.max_device_memory is not None:
        raise GigavimError(
            "--max-device-memory limits a GPU, and this run is on the CPU; leave it out, "
            "--max-memory is the limit here"
        )
    what = f"{plan.setup.source.path}, {len(plan.sequence):,} tokens"
    return fit(what, costs, host, device, resources.chunk)


def fit(
    what: str, costs: Costs, host: Memory, device: Memory | None, chunk: int | None = None
) -> MemoryPlan:
    """Choose the largest chunk that fits, then the fastest place that does.

    Parameters
    ----------
    what
        Is run, for the message of an error.
    device
        Of the GPU; None on the CPU.
    chunk
        Most tokens of a chunk; by default as suits the device.

    Raises
    ------
    GigavimError
        If a limit is too small; the message has the smallest that works.
    """
    pinned = device is not None
    smallest = costs.on_host(TILE, "disk", pinned=pinned)
    limit = host.allowed(smallest)
    if limit < smallest:
        raise GigavimError(
            f"{what}: --max-memory {_mib(limit)} is too little; "
            f"the smallest that works is {_mib(_rounded(smallest))}"
        )
    device_limit = None
    if device is not None:
        smallest = costs.on_device(TILE, "disk")
        device_limit = device.allowed(smallest)
        if device_limit < smallest:
            raise GigavimError(
                f"{what}: --max-device-memory {_mib(device_limit)} is too little; "
                f"the smallest that works is {_mib(smallest)}"
            )
        device_limit = min(device_limit, max(smallest, device.taken + device.free))

    def fits(chunk: int, place: Place) -> bool:
        on_device = device_limit is None or costs.on_device(chunk, place) <= device_limit
        return on_device and costs.on_host(chunk, place, pinned=pinned) <= limit

    # Whole tiles, so that the limit does not decide where the CPU's arithmetic is cut.
    whole = TILE * max(1, -(-costs.rows // TILE))
    chunk = chunk or min(CHUNK["cpu" if device is None else "cuda"], whole)
    while chunk > TILE and not fits(chunk, "disk"):
        chunk = max(1, chunk // 2 // TILE) * TILE
    places: tuple[Place, ...] = ("device", "host")
    if device is None:
        places = ("host",) if costs.rows <= IN_MEMORY else ()
    place: Place = next((place for place in places if fits(chunk, place)), "disk")
    return MemoryPlan(
        limit=limit,
        expected=costs.on_host(chunk, place, pinned=pinned),
        chunk=chunk,
        residual_on=place,
        device_limit=device_limit,
        device_expected=None if device is None else costs.on_device(chunk, place),
        scratch=costs.scratch(chunk) if place == "disk" else 0,
    )


def _costs(plan: Plan, taken: int, readers: int) -> Costs:
    """Estimate what a run takes that has taken so much already."""
    encoder, tokens = plan.setup.model.encoder, len(plan.sequence)
    config, itemsize = encoder.config, rows_like(encoder).element_size()
    row, inner = config.width * itemsize, config.inner * itemsize
    cross = config.block == "cross"
    working = 14 * inner
    beside = max(_reading(plan, readers), NUCLEI * ("nuclei" in plan.setup.heads))
    largest = max(len(block.cells) for block in plan.blocks)
    embedding = largest * (config.patch**2 * config.bands * itemsize + row)
    if plan.tile is not None:
        beside = max(beside, _blocks_held(plan) + working * TILE)
        embedding += largest * (3 * row + working)
    whole = plan.tile is None
    kept = cache_limit() if plan.setup.source.reader == "rasterio" else 0
    return Costs(
        rows=rows_of(encoder, tokens) if whole else 0,
        tables=((row, row) + INNER_TABLES * (inner,) * cross) if whole else (),
        part=(3 * inner + 256 if cross else 3 * row) if whole else 0,
        working=working if whole else 0,
        host=taken + FIXED + kept + (PER_TOKEN + PER_PLACE * cross) * tokens,
        host_beside=beside,
        weights=sum(weight.nbytes for weight in encoder.parameters()),
        embedding=embedding,
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
