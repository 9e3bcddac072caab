"""A stack of dates, end to end: one sequence, one map, and one for each date where asked for."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, SourceError
from gigavim.geometry import Window
from gigavim.georeference import Registration
from gigavim.memory import return_freed_memory
from gigavim.pipelines.encode import ROWS_AT_ONCE, encode_blocks, features_in_order, mix_whole
from gigavim.pipelines.maps import (
    ClassMap,
    announce_map,
    image_scores,
    write_maps,
    write_pictures,
)
from gigavim.pipelines.memory import MemoryPlan, plan_memory
from gigavim.pipelines.plan import Plan
from gigavim.pipelines.record import Recorded
from gigavim.pipelines.report import Progress, Silent, Stages, Summary, peak_memory
from gigavim.pipelines.run import attributes_of, ready_device
from gigavim.pipelines.stack.features import (
    mean_features,
    placed_tokens,
    valid_places,
    valid_tokens,
)
from gigavim.pipelines.stack.heads import map_dates
from gigavim.pipelines.stack.plan import StackOrder, StackPlan, plan_stack
from gigavim.pipelines.stream import reader_pool
from gigavim.precision import products_in
from gigavim.quality import Quality, examine
from gigavim.sources.source import ReadError
from gigavim.store import ResultStore, fingerprint, last_changes
from gigavim.streamed import rows_of, sweeps_of

logger = logging.getLogger(__name__)


def run_stack(
    paths: Sequence[str],
    store_path: Path,
    config: RunConfig,
    resources: Resources,
    *,
    dates: Sequence[date] | None = None,
    order: StackOrder = "date",
    per_date: bool = False,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Summary:
    """Map a place from images of several dates, or take up such a run where it stopped.

    All patches of all dates are one sequence; the features of a place are the mean over its dates.

    Parameters
    ----------
    dates
        Of the images, in their order; by default as they say themselves.
    per_date
        Also map each date, from the features that its patches have in the sequence of all.

    Raises
    ------
    GigavimError
        If an image, the model, the device or the store fail, or the images make no stack.
    """
    started = time.perf_counter()
    stages = Stages()
    before = [last_changes(path) for path in paths]
    with stages.measure("open"):
        device = ready_device(config, resources)
    with stages.measure("foreground"):
        stack = plan_stack(paths, config, device, dates=dates, order=order)
        memory = plan_memory(stack.tokens, resources)
    places = stack.places
    attributes = _attributes(stack, per_date, command)
    if not force and ResultStore.is_finished(store_path, attributes):
        return Summary(store_path.name, "skipped", store=str(store_path))
    with (
        ResultStore.create(store_path, attributes, force=force) as store,
        Recorded(progress or Silent(), store_path) as recorded,
    ):
        if store.complete:
            return Summary(store_path.name, "skipped", store=str(store_path))
        resumed = any(
            store.part(str(day)).block_done(block.number)
            for day, plan in zip(stack.dates, stack.plans, strict=True)
            for block in plan.blocks
        )
        with stages.measure("quality"):
            quality = _quality(stack)
        with products_in(config.precision, device):
            megapixels = _fill(stack, store, resources, memory, per_date, stages, recorded)
        return_freed_memory()
        recorded.begin("classifying")
        with stages.measure("heads"):
            maps, by_date = map_dates(stack, store, per_date=per_date)
        recorded.begin("writing")
        with stages.measure("write"):
            write_maps(places, store, maps, quality)
            found: dict[str, Any] = write_pictures(places, store_path, maps[0]) if maps else {}
            for plan, made in by_date:
                _write_map(plan, store, made)
                write_pictures(plan, store_path, made)
        areas, cells = maps[0].areas(places) if maps else ({}, None)
        summary = Summary(
            image=f"{len(stack.dates)} dates, {stack.dates[0]} to {stack.dates[-1]}",
            status="complete",
            store=str(store_path),
            **found,
            model=places.setup.model.path.stem,
            mode="whole",
            spacing=places.setup.spacing,
            unit=places.setup.own.unit,
            tokens=len(stack.tokens.sequence),
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
            scores=image_scores(places, store),
            class_areas=areas,
            area_unit=cells.unit if cells else None,
            area_unknown=cells.unknown if cells else None,
            quality=quality.shares,
            faults=quality.found,
            warnings=places.warnings,
        )
        if [last_changes(path) for path in paths] != before:
            raise SourceError(
                "an image of the stack changed while it was read; run it again with --force once "
                "all are whole"
            )
        store.finish(
            seconds=summary.seconds,
            stages=summary.stages,
            peak_memory_bytes=summary.peak_memory_bytes,
            quality={"shares": quality.shares, "found": list(quality.found)},
            warnings=list(places.warnings),
        )
    return summary


def _attributes(stack: StackPlan, per_date: bool, command: Sequence[str]) -> dict[str, Any]:
    """Say what the store is of: a run of the clearest image, and the dates of the stack."""
    places = stack.places
    attributes = attributes_of(places.setup, places.setup.source.path, command)
    dates = [
        {"date": str(day), "uri": plan.setup.source.path, **fingerprint(plan.setup.source.path)}
        for day, plan in zip(stack.dates, stack.plans, strict=True)
    ]
    attributes["configuration"] |= {
        "stack": {"order": stack.order, "per_date": per_date, "dates": dates}
    }
    return attributes


def _fill(
    stack: StackPlan,
    store: ResultStore,
    resources: Resources,
    memory: MemoryPlan,
    per_date: bool,
    stages: Stages,
    progress: Recorded,
) -> float:
    """Read and encode all blocks of all dates, and put features and vector where they stay."""
    total = 0.0

    def on_block(tokens: int, megapixels: float) -> None:
        nonlocal total
        total += megapixels
        progress.advance(tokens, megapixels)

    places, encoder = stack.places, stack.places.setup.model.encoder
    store.write_array("tokens/coords", places.sequence.coords)
    store.write_array("tokens/grid_index", places.sequence.index)
    architecture = encoder.config
    store.describe(
        "tokens",
        order=places.sequence.order,
        position=architecture.position,
        rope=architecture.rope,
    )
    announce_map(places, store)
    progress.start("reading", stack.tokens.tokens)
    errors: list[ReadError] = []
    with reader_pool(resources.readers) as client:
        for day, plan in zip(stack.dates, stack.plans, strict=True):
            part = store.part(str(day))
            ahead = 2 * resources.readers
            encode_blocks(plan, part, client, stages, ahead=ahead, on_block=on_block)
            errors += _errors(day, plan, part)
    return_freed_memory()
    valid = valid_tokens(stack, store)
    if not valid.any():
        raise GigavimError(
            f"{stack.tokens.setup.source.path} and the others: none of their {len(valid)} patches "
            "could be read; get the files again, or check them with `gigavim info`"
        )
    progress.start("mixing", rows_of(encoder, int(valid.sum())) * sweeps_of(encoder))
    with contextlib.ExitStack() as until:
        with stages.measure("encode"):
            mixed = until.enter_context(
                mix_whole(
                    stack.tokens,
                    store,
                    valid,
                    chunk=memory.chunk,
                    residual_on=memory.residual_on,
                    on_chunk=progress.advance,
                    tokens=placed_tokens(stack, store, valid),
                )
            )
        with stages.measure("write"):
            features = mean_features(stack, mixed, valid)
            shape = (len(places.sequence), architecture.width)
            store.write_rows("tokens/features", features, shape, np.float16)
            if per_date:
                shape = (len(valid), architecture.width)
                parts = features_in_order(stack.tokens, mixed, valid, ROWS_AT_ONCE)
                store.write_rows("dates/features", parts, shape, np.float16)
        vector = mixed.vector.cpu().numpy()
    with stages.measure("write"):
        if per_date:
            store.write_array("dates/grid_index", stack.tokens.sequence.index)
            store.write_array("dates/date", stack.date_of_token)
            store.write_array("dates/valid", valid.astype(np.uint8))
            store.describe("dates", dates=[str(day) for day in stack.dates])
        store.write_array("tokens/valid", valid_places(stack, valid).astype(np.uint8))
        store.write_array("image/vector", vector.astype(np.float32))
        store.write_errors(errors, places.setup.source.levels)
    return total


def _errors(day: date, plan: Plan, store: ResultStore) -> Iterator[ReadError]:
    """Yield what could not be read of a date, in level-0 pixels."""
    for block in plan.blocks:
        for error in store.read_block(block.number).errors:
            level, window = plan.setup.source.levels[error.level], error.window
            there = Window(
                round(window.y * level.downsample_y),
                round(window.x * level.downsample_x),
                round(window.height * level.downsample_y),
                round(window.width * level.downsample_x),
            )
            yield ReadError(0, there, f"{day}: {error.message}")


def _quality(stack: StackPlan) -> Quality:
    """Find what is wrong with a place on every date on which it is seen."""
    rows, columns = stack.places.setup.grid.shape
    best = np.full((rows, columns), 255, np.uint8)
    said: dict[str, list[date]] = {}
    first: Quality | None = None
    for day, plan in zip(stack.dates, stack.plans, strict=True):
        here = np.zeros(best.shape, np.bool_)
        here[tuple(plan.sequence.index.T)] = True
        quality = examine(plan.setup.source, plan.setup.grid, here)
        first = first or quality
        best[here] = np.minimum(best, quality.labels)[here]
        for words in quality.found:
            said.setdefault(words, []).append(day)
    assert first is not None
    seen = best < 255
    best[~seen] = 0
    counts = np.bincount(best[seen], minlength=len(first.names) + 1)[1:]
    shares = dict(zip(first.names, (counts / max(1, seen.sum())).tolist(), strict=True))
    found = tuple(f"{_days(days, stack)}: {words}" for words, days in said.items())
    return Quality(best, first.names, first.colours, shares, found)


def _days(days: Sequence[date], stack: StackPlan) -> str:
    """Name the dates of which something is said."""
    return "all dates" if len(days) == len(stack.dates) > 1 else ", ".join(map(str, days))


def _write_map(plan: Plan, store: ResultStore, made: ClassMap) -> None:
    layout = plan.sequence.scatter(made.labels, 0)
    registration = Registration.of(plan.setup.grid, plan.setup.source)
    store.write_label_map(made.name, layout, made.table.names, made.table.colours, registration)
