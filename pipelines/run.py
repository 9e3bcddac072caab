"""One image, end to end: pixels to tokens, tokens to features, features to maps."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim import __version__
from gigavim.checkpoint import ModelSpec
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, ModelError, SourceError
from gigavim.kernels.scan import scan_backend
from gigavim.memory import return_freed_memory
from gigavim.pipelines.dense import map_nuclei
from gigavim.pipelines.encode import (
    ROWS_AT_ONCE,
    encode_blocks,
    features_in_order,
    mix_by_workers,
    mix_whole,
    rows_in_order,
    tile_vectors,
    valid_in_order,
)
from gigavim.pipelines.maps import (
    announce_map,
    apply_heads,
    image_scores,
    write_maps,
    write_pictures,
)
from gigavim.pipelines.memory import MemoryPlan, plan_memory
from gigavim.pipelines.plan import Plan, Setup, make_plan, set_up
from gigavim.pipelines.record import Recorded
from gigavim.pipelines.report import Progress, Silent, Stages, Summary, peak_memory
from gigavim.pipelines.share import Mixed as SharedMixed
from gigavim.pipelines.stream import reader_pool
from gigavim.precision import product_precision, products_in
from gigavim.quality import examine
from gigavim.qupath import qupath_origin
from gigavim.sources.remote import is_remote
from gigavim.store import ResultStore, fingerprint, last_changes
from gigavim.streamed import Mixed, rows_of, sweeps_of

logger = logging.getLogger(__name__)


def run_image(
    path: str,
    store_path: Path,
    config: RunConfig,
    resources: Resources,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    copy: Path | None = None,
    batch: str | None = None,
) -> Summary:
    """Map one image, or take up its run where it stopped.

    Parameters
    ----------
    store_path
        The store, ``<name>.gigavim.zarr``; pictures are put beside it.
    force
        Start over, whatever is there.
    command
        What the user typed, for the record.
    progress
        Told after each block and chunk that is committed; what it raises ends the run there, and
        the same call takes it up.
    copy
        A copy of the image that is quicker to read; the store is of the image all the same.
    batch
        Which batch this is part of. What it has begun is taken up, also with ``force``.

    Raises
    ------
    GigavimError
        If the image, the model, the device or the store fail.
    """
    started = time.perf_counter()
    stages = Stages()
    before = last_changes(str(copy or path))
    with stages.measure("open"):
        device = ready_device(config, resources)
        setup = set_up(str(copy or path), config, device)
        attributes = attributes_of(setup, path, command) | {"batch": batch}
        force = force and not (batch and ResultStore.batch_of(store_path) == batch)
    if not force and ResultStore.is_finished(store_path, attributes):
        return Summary(path, "skipped", store=str(store_path))
    if setup.mode == "tiles" and (resources.workers or resources.scheduler):
        raise GigavimError("workers share one sequence: use --mode whole, or leave them out")
    if setup.order == "cross" and (resources.workers or resources.scheduler):
        raise GigavimError("workers share sequences, not rows and columns: leave them out")
    with stages.measure("foreground"):
        plan = make_plan(setup)
        memory = plan_memory(plan, resources)
    with (
        ResultStore.create(store_path, attributes, force=force) as store,
        Recorded(progress or Silent(), store_path) as recorded,
    ):
        if store.complete:
            return Summary(path, "skipped", store=str(store_path))
        resumed = any(store.block_done(block.number) for block in plan.blocks)
        with stages.measure("quality"):
            here = plan.sequence.scatter(np.ones(len(plan.sequence), np.uint8), 0) > 0
            quality = plan.quality or examine(setup.source, setup.grid, here)
        with products_in(config.precision, device):
            megapixels = _fill(plan, store, resources, memory, stages, recorded)
        return_freed_memory()
        recorded.begin("classifying")
        with stages.measure("heads"):
            maps = apply_heads(plan, store)
        recorded.begin("writing")
        with stages.measure("write"):
            write_maps(plan, store, maps, quality)
            found: dict[str, Any] = write_pictures(plan, store_path, maps[0]) if maps else {}
        if "nuclei" in setup.heads:
            with products_in(config.precision, device):
                found |= map_nuclei(plan, store, store_path, resources.readers, stages, recorded)
        areas, cells = maps[0].areas(plan) if maps else ({}, None)
        summary = Summary(
            image=path,
            status="complete",
            store=str(store_path),
            **found,
            model=setup.model.path.stem,
            mode=setup.mode,
            spacing=setup.spacing,
            unit=setup.own.unit,
            tokens=len(plan.sequence),
            unreadable_tokens=int((store.values("tokens/valid") == 0).sum()),
            read_errors=len(store.values("errors/x")),
            megapixels=megapixels,
            resumed=resumed,
            seconds=time.perf_counter() - started,
            stages=dict(stages.seconds),
            peak_memory_bytes=peak_memory(),
            peak_device_memory_bytes=torch.cuda.max_memory_allocated(device)
            if device.startswith("cuda")
            else None,
            classes=maps[0].shares() if maps else {},
            scores=image_scores(plan, store),
            class_areas=areas,
            area_unit=cells.unit if cells else None,
            area_unknown=cells.unknown if cells else None,
            quality=quality.shares,
            faults=quality.found,
            warnings=plan.warnings,
        )
        if last_changes(str(copy or path)) != before:
            raise SourceError(
                f"{path} changed while it was read; run it again with --force once it is whole"
            )
        store.finish(
            seconds=summary.seconds,
            stages=summary.stages,
            peak_memory_bytes=summary.peak_memory_bytes,
            quality={"shares": quality.shares, "found": list(quality.found)},
            warnings=list(plan.warnings),
        )
    return summary


def ready_device(config: RunConfig, resources: Resources) -> str:
    """Return the device to run on, and say in the log what is slow or less exact on it.

    Raises
    ------
    GigavimError
        If the one that was asked for is not there.
    """
    device = pick_device(resources.device)
    scan = scan_backend(device, torch.float32)
    if scan.name in ("torch", "reference"):
        logger.warning("the scan is slow here: %s; `gigavim doctor` has the fix", scan.reason)
    products = product_precision(device, config.precision)
    if products.precision != config.precision:
        logger.warning("products are computed in %s: %s", products.precision, products.reason)
    return device


def pick_device(name: str) -> str:
    """Return the device to run on.

    Raises
    ------
    GigavimError
        If the one that was asked for is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        fault = str(error).splitlines()[0]
        raise GigavimError(
            f"device {name!r} cannot be used here ({fault}); --device cpu always can"
        ) from error
    return name


def attributes_of(setup: Setup, path: str, command: Sequence[str]) -> dict[str, Any]:
    """Say what the store is of; `configuration`, `model` and `source` make the run what it is."""
    config, source, grid = setup.config, setup.source, setup.grid
    configuration = config.as_dict() | {"order": setup.order, "mode": setup.mode}
    # Which models these are shows below, by their content.
    for name in ("model", "encoder", "trust"):
        del configuration[name]
    if config.mask is not None:
        configuration["mask"] = fingerprint(config.mask)["fingerprint"]
    if config.aoi is not None:
        configuration["aoi_fingerprint"] = fingerprint(config.aoi)["fingerprint"]
    return {
        "version": __version__,
        "command": " ".join(command),
        "configuration": configuration,
        "model": {
            "id": setup.model.path.stem,
            "weights_sha256": setup.model.sha256,
            **_reading_tiles(setup.model.spec),
        },
        "source": {
            "uri": path if is_remote(path) else str(Path(path).absolute()),
            "reader": source.reader,
            "kind": source.kind,
            "height": source.levels[0].height,
            "width": source.levels[0].width,
            "bands": [band.name for band in source.bands],
            "bounds": list(qupath_origin(source)),
            **fingerprint(source.path),
        },
        "spacing": {
            "requested": config.spacing,
            "achieved": setup.spacing,
            "level0": [setup.own.y, setup.own.x],
            "unit": setup.own.unit,
            "origin": setup.own.origin,
            "level_read": setup.plane.level,
        },
        "grid": {
            "rows": grid.rows,
            "columns": grid.columns,
            "patch": grid.patch,
            "stride": grid.stride,
            "cell_level0": [grid.cell_y, grid.cell_x],
            **({} if setup.tile is None else {"tile": setup.tile}),
        },
    }


def _reading_tiles(spec: ModelSpec) -> dict[str, Any]:
    """Say how a model reads tiles by an encoder whose file does not say it."""
    if spec.tiles is None:
        return {}
    about = json.loads(spec.to_json())
    del about["code_version"]
    return {"spec": about}


def _fill(
    plan: Plan,
    store: ResultStore,
    resources: Resources,
    memory: MemoryPlan,
    stages: Stages,
    progress: Progress,
) -> float:
    """Read and encode all blocks, and put features and vectors where they stay."""
    total = 0.0

    def on_block(tokens: int, megapixels: float) -> None:
        nonlocal total
        total += megapixels
        progress.advance(tokens, megapixels)

    sequence = plan.sequence
    store.write_array("tokens/coords", sequence.coords)
    store.write_array("tokens/grid_index", sequence.index)
    architecture = plan.setup.model.encoder.config
    store.describe(
        "tokens", order=sequence.order, position=architecture.position, rope=architecture.rope
    )
    announce_map(plan, store)
    progress.start("reading", plan.tokens)
    with reader_pool(resources.readers) as client:
        encode_blocks(plan, store, client, stages, ahead=2 * resources.readers, on_block=on_block)
    return_freed_memory()
    valid = valid_in_order(plan, store)
    if not valid.any():
        raise GigavimError(
            f"{plan.setup.source.path}: none of its {len(valid)} patches could be read; "
            "get the file again, or check it with `gigavim info`"
        )
    shape = (len(sequence), plan.setup.model.encoder.config.width)
    if plan.tile is None:
        encoder = plan.setup.model.encoder
        progress.start("mixing", rows_of(encoder, int(valid.sum())) * sweeps_of(encoder))
        with contextlib.ExitStack() as stack:
            with stages.measure("encode"), _naming(plan.setup.source.path):
                mixed = stack.enter_context(_mix(plan, store, valid, resources, memory, progress))
            with stages.measure("write"):
                parts = features_in_order(plan, mixed, valid, ROWS_AT_ONCE)
                store.write_rows("tokens/features", parts, shape, np.float16)
            vector = torch.as_tensor(mixed.vector).cpu().numpy()
    else:
        with stages.measure("write"):
            rows = rows_in_order(plan, store, ROWS_AT_ONCE)
            store.write_rows("tokens/features", rows, shape, np.float16)
            index, vectors, whole = tile_vectors(plan, store)
            store.write_array("tiles/coords", plan.setup.grid.coords(index))
            store.write_array("tiles/grid_index", index)
            store.write_array("tiles/vectors", vectors.astype(np.float16))
            store.write_array("tiles/valid", whole.astype(np.uint8))
        vector = vectors[whole].mean(0)
    with stages.measure("write"):
        store.write_array("tokens/valid", valid.astype(np.uint8))
        store.write_array("image/vector", vector.astype(np.float32))
        errors = [error for block in plan.blocks for error in store.read_block(block.number).errors]
        store.write_errors(errors, plan.setup.source.levels)
    return total


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say at which image a model failed."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _mix(
    plan: Plan,
    store: ResultStore,
    valid: NDArray[np.bool_],
    resources: Resources,
    memory: MemoryPlan,
    progress: Progress,
) -> contextlib.AbstractContextManager[Mixed | SharedMixed]:
    """Let all tokens see each other: in this process, or shared by workers."""
    if resources.workers is None and resources.scheduler is None:
        return mix_whole(
            plan,
            store,
            valid,
            chunk=memory.chunk,
            residual_on=memory.residual_on,
            on_chunk=progress.advance,
        )
    sweeps = sweeps_of(plan.setup.model.encoder)
    return mix_by_workers(
        plan,
        store,
        valid,
        workers=resources.workers,
        scheduler=resources.scheduler,
        chunk=memory.chunk,
        on_layer=lambda tokens: progress.advance(tokens * sweeps),
    )
