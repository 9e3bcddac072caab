"""From blocks of patches to features: the two ways to read an image."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim import __version__
from gigavim.encoder import VisionMamba
from gigavim.head import probabilities
from gigavim.patches import Patches
from gigavim.pipelines.plan import Plan
from gigavim.pipelines.report import Stages
from gigavim.pipelines.share import Mixed as SharedMixed
from gigavim.pipelines.share import dask_workers, mix_shared
from gigavim.pipelines.stream import stream
from gigavim.store import ResultStore
from gigavim.store.blocks import BlockLabels
from gigavim.store.disk import writing
from gigavim.streamed import (
    INNER_TABLES,
    DiskScratch,
    MemoryScratch,
    Mixed,
    Place,
    Scratch,
    mix,
    mix_cross,
    rows_like,
    rows_of,
)

Placed = tuple[NDArray[np.int64], torch.Tensor]
"""Tokens, and their places in a sequence."""
ROWS_AT_ONCE = 32_768
"""Rows of the sequence that are put in order together."""
BLOCKS_HELD = 64
"""Blocks kept while rows are put in order: two rows of blocks of a large slide."""


def encode_blocks(
    plan: Plan,
    store: ResultStore,
    client: Any,
    stages: Stages,
    *,
    ahead: int,
    on_block: Callable[[int, float], None],
) -> None:
    """Read and encode each block that the store does not have yet, and commit it.

    ``whole``: a block's rows are tokens, which `mix_whole` lets see each other. ``tiles``: they are
    features, each tile mixed by itself, and behind them one row a tile, its vector.

    Parameters
    ----------
    ahead
        Blocks read and not yet encoded.
    on_block
        Told the tokens and level megapixels of each block.
    """
    todo = [block for block in plan.blocks if not store.block_done(block.number)]
    for block in plan.blocks:
        if store.block_done(block.number):
            on_block(len(block.cells), 0.0)
    started = time.perf_counter()
    for patches in stream(client, plan.reader, todo, ahead=ahead):
        stages.add("waiting for pixels", time.perf_counter() - started)
        stages.add("read", patches.read_s)
        stages.add("decode", patches.decode_s)
        with stages.measure("encode"):
            rows = _encode(plan, patches)
        with stages.measure("write"):
            shown = _shown(plan, patches, rows)
            store.write_block(patches.number, rows, patches.valid, patches.errors, shown)
        on_block(len(patches.valid), patches.megapixels)
        started = time.perf_counter()


def rows_in_order(plan: Plan, store: ResultStore, size: int) -> Iterator[NDArray[np.float32]]:
    """Yield what the blocks hold for the patches of the sequence, in its order, in parts."""
    block_of = np.empty(len(plan.sequence), np.int32)
    row_of = np.empty(len(plan.sequence), np.int32)
    for block, positions in zip(plan.blocks, plan.positions, strict=True):
        wanted = positions >= 0
        block_of[positions[wanted]] = block.number
        row_of[positions[wanted]] = np.flatnonzero(wanted)
    held: dict[int, NDArray[np.float32]] = {}
    for cut in plan.sequence.chunks(size):
        part = np.empty((cut.stop - cut.start, plan.setup.model.encoder.config.width), np.float32)
        for number in np.unique(block_of[cut]):
            if number not in held:
                if len(held) >= BLOCKS_HELD:
                    held.pop(next(iter(held)))
                held[number] = store.read_block(int(number)).tokens
            here = block_of[cut] == number
            part[here] = held[number][row_of[cut][here]]
        yield part


def valid_in_order(plan: Plan, store: ResultStore) -> NDArray[np.bool_]:
    """Return which patches of the sequence could be read, shape (n,)."""
    valid = np.empty(len(plan.sequence), np.bool_)
    for block, positions in zip(plan.blocks, plan.positions, strict=True):
        wanted = positions >= 0
        valid[positions[wanted]] = store.read_block(block.number).valid[wanted]
    return valid


@contextlib.contextmanager
def mix_whole(
    plan: Plan,
    store: ResultStore,
    valid: NDArray[np.bool_],
    *,
    chunk: int,
    residual_on: Place,
    on_chunk: Callable[[int], None],
    tokens: Iterable[Placed] | None = None,
) -> Iterator[Mixed]:
    """Let all tokens of the image see each other, as one sequence of those that could be read.

    Parameters
    ----------
    valid
        Which patches could be read, shape (n,).
    chunk
        Tokens that a layer takes from one save to the next.
    residual_on
        Where the residual stream waits between layers; from the disk a killed run continues.
    on_chunk
        Told the rows of each chunk of each layer and direction.
    tokens
        Those of the valid patches with their positions, and their places among them; by default
        those in the blocks of the store.

    Yields
    ------
    mixed
        The features of the valid patches; while the context lasts, they can be read.
    """
    encoder, length = plan.setup.model.encoder, int(valid.sum())
    config, rows, like = encoder.config, rows_of(encoder, length), rows_like(encoder)
    with contextlib.ExitStack() as stack:

        def scratch(name: str, width: int, tables: int = 2) -> Scratch:
            if residual_on != "disk":
                on_host = residual_on == "host"
                return MemoryScratch(rows, width, chunk, like, on_host=on_host, tables=tables)
            folder, identity = store.path / "state" / name, _identity(store, like)
            return stack.enter_context(
                DiskScratch(folder, identity, rows, width, chunk, like, tables=tables)
            )

        if tokens is None:
            tokens = tokens_by_block(plan, store, valid)
        residual = scratch("mixing", config.width)
        index = torch.from_numpy(plan.sequence.index[valid])
        if config.block == "cross":
            inner = scratch("inner", config.inner, INNER_TABLES)
            yield mix_cross(encoder, tokens, index, residual, inner, on_chunk=on_chunk)
        else:
            yield mix(
                encoder,
                tokens,
                length,
                residual,
                positioned=config.position != "none",
                index=index,
                grid=(plan.setup.grid.rows, plan.setup.grid.columns),
                on_chunk=on_chunk,
            )


@contextlib.contextmanager
def mix_by_workers(
    plan: Plan,
    store: ResultStore,
    valid: NDArray[np.bool_],
    *,
    workers: int | None,
    scheduler: str | None,
    chunk: int,
    on_layer: Callable[[int], None],
) -> Iterator[SharedMixed]:
    """Do what `mix_whole` does, by the workers of a Dask cluster.

    Parameters
    ----------
    workers
        Processes to start on this machine.
    scheduler
        Address of a running cluster, in their place.
    chunk
        Tokens whose projections a worker holds at once.
    on_layer
        Told the tokens of each layer that is done.
    """
    folder = store.path / "state" / "share"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with dask_workers(workers, scheduler) as found:
        yield mix_shared(
            found,
            plan.setup.model,
            _tokens_in_order(plan, store, valid),
            int(valid.sum()),
            folder=folder,
            chunk=chunk,
            on_layer=on_layer,
        )


def features_in_order(
    plan: Plan, mixed: Mixed | SharedMixed, valid: NDArray[np.bool_], size: int
) -> Iterator[NDArray[np.float16]]:
    """Yield the features of all patches in parts, 0 where a patch is not valid."""
    done = 0
    for cut in plan.sequence.chunks(size):
        here = valid[cut]
        part = np.zeros((len(here), plan.setup.model.encoder.config.width), np.float16)
        features = torch.as_tensor(mixed.tokens(done, done + int(here.sum())))
        part[here] = features.cpu().numpy()
        done += int(here.sum())
        yield part


def tokens_by_block(plan: Plan, store: ResultStore, valid: NDArray[np.bool_]) -> Iterator[Placed]:
    """Yield the places among the valid patches, and the tokens with their positions, by block."""
    encoder, grid = plan.setup.model.encoder, plan.setup.grid
    missing = np.flatnonzero(~valid)
    for block, positions in zip(plan.blocks, plan.positions, strict=True):
        held = store.read_block(block.number)
        wanted = (positions >= 0) & held.valid
        tokens = torch.from_numpy(held.tokens[wanted]).to(_device(encoder))
        index = torch.from_numpy(block.index[wanted])
        position = encoder.position_for(grid.rows, grid.columns, index)
        places = positions[wanted].astype(np.int64)
        yield (
            places - np.searchsorted(missing, places),
            tokens if position is None else tokens + position,
        )


def _tokens_in_order(
    plan: Plan, store: ResultStore, valid: NDArray[np.bool_]
) -> Iterator[NDArray[np.float32]]:
    """Yield the tokens of the valid patches with their positions, in the order of the sequence."""
    encoder, sequence = plan.setup.model.encoder, plan.sequence
    rows = rows_in_order(plan, store, ROWS_AT_ONCE)
    for cut, tokens in zip(sequence.chunks(ROWS_AT_ONCE), rows, strict=True):
        here = valid[cut]
        index = torch.from_numpy(sequence.index[cut][here])
        position = encoder.position_for(plan.setup.grid.rows, plan.setup.grid.columns, index)
        yield tokens[here] if position is None else tokens[here] + position.cpu().numpy()


def _identity(store: ResultStore, like: torch.Tensor) -> str:
    """Name everything that decides a bit of what is mixed."""
    run = {name: store.attributes.get(name) for name in ("configuration", "model", "source")}
    return json.dumps([__version__, torch.__version__, str(like.device), run], sort_keys=True)


def tile_vectors(
    plan: Plan, store: ResultStore
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
    """Collect the tiles, in the order of reading.

    Returns
    -------
    index
        Row and column of each tile's first patch, shape (t, 2).
    vectors
        Shape (t, D).
    valid
        Whether any of a tile could be read, shape (t,).
    """
    assert plan.tile is not None
    index, vectors, valid = [], [], []
    for block in plan.blocks:
        held = store.read_block(block.number)
        corners = block.index[:: plan.tile**2]
        index.append(corners)
        vectors.append(held.tokens[len(block.cells) :])
        valid.append(held.valid.reshape(len(corners), -1).any(1))
    return np.concatenate(index), np.concatenate(vectors), np.concatenate(valid)


def _shown(plan: Plan, patches: Patches, rows: NDArray[np.float32]) -> BlockLabels:
    """Label a block for whoever follows the run: with classes if they are known, or as read."""
    wanted = plan.positions[patches.number] >= 0
    labels = patches.valid.astype(np.uint8)
    if plan.told_by_block is not None:
        assert plan.tile is not None
        # As they will be read from the store.
        vectors = rows[len(labels) :].astype(np.float16)
        probs = np.concatenate(list(probabilities(vectors, plan.setup.model.encoder)))
        labels *= (probs.argmax(1) + 1).astype(np.uint8).repeat(plan.tile**2)
    return BlockLabels(plan.blocks[patches.number].index[wanted], labels[wanted])


@torch.inference_mode()
def _encode(plan: Plan, patches: Patches) -> NDArray[np.float32]:
    encoder = plan.setup.model.encoder
    tokens = encoder.embed(torch.from_numpy(patches.pixels).to(_device(encoder)))
    if plan.tile is None:
        return tokens.cpu().numpy()
    length = plan.tile**2
    features, vectors = _mix_tiles(
        encoder,
        tokens.view(-1, length, tokens.shape[-1]),
        torch.from_numpy(patches.valid.reshape(-1, length)),
        plan.tile,
    )
    return torch.cat([features.flatten(0, 1), vectors]).cpu().numpy()


def _mix_tiles(
    encoder: VisionMamba, tokens: torch.Tensor, valid: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each tile by itself, those together that lack the same patches.

    Parameters
    ----------
    tokens
        Shape (t, l, D).
    valid
        Shape (t, l); what is not valid is left out of a tile's sequence.
    """
    index = torch.cartesian_prod(torch.arange(side), torch.arange(side)).to(tokens.device)
    position = encoder.position_for(side, side)
    features, vectors = torch.zeros_like(tokens), torch.zeros_like(tokens[:, 0])
    patterns, pattern_of = torch.unique(valid, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        if pattern.any():
            tiles = (pattern_of == number).to(tokens.device)
            kept = pattern.to(tokens.device)
            mixed = encoder.mix(
                tokens[tiles][:, kept],
                None if position is None else position[kept],
                index=index[kept],
                grid=(side, side),
            )
            features[tiles.nonzero(), kept.nonzero()[:, 0]] = mixed.tokens
            vectors[tiles] = mixed.vector
    return features, vectors


def _device(encoder: VisionMamba) -> torch.device:
    return next(encoder.parameters()).device
