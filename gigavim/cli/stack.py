"""Map one place from images of several dates."""

from __future__ import annotations

import sys
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gigavim.cli.options import (
    Aoi,
    Bands,
    Bounds,
    Crs,
    Debug,
    Device,
    ExcludeQc,
    Heads,
    Json,
    Mask,
    MaskClouds,
    MaxDeviceMemory,
    MaxMemory,
    Model_,
    NoMask,
    SourceSpacing,
    Spacing_,
    bytes_in,
    config_in,
)
from gigavim.cli.outcome import log_to, or_one_line, print_json
from gigavim.config import Resources


class StackOrder(StrEnum):
    """What comes first in the sequence."""

    date = "date"
    place = "place"


def stack(
    images: Annotated[list[str], typer.Argument(help="Scenes of one place, in any order.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The store, NAME.gigavim.zarr.")
    ] = Path("stack.gigavim.zarr"),
    dates: Annotated[
        str | None,
        typer.Option(help="Of the images, in their order, where they do not say them: 2024-05-01."),
    ] = None,
    sequence: Annotated[
        StackOrder,
        typer.Option("--order", help="Date after date, or place after place with all its dates."),
    ] = StackOrder.date,
    per_date: Annotated[bool, typer.Option("--per-date", help="Also map each date.")] = False,
    model: Model_ = None,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    crs: Crs = None,
    bounds: Bounds = None,
    aoi: Aoi = None,
    mask_clouds: MaskClouds = False,
    head: Heads = None,
    clusters: Annotated[int, typer.Option(min=1, max=255, help="Clusters of the map.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the clustering.")] = 0,
    mask: Mask = None,
    no_mask: NoMask = False,
    exclude_qc: ExcludeQc = False,
    device: Device = "auto",
    readers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = 2,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: Debug = False,
) -> None:
    """Map a place from scenes of several dates, read as one sequence."""
    config = config_in(locals())
    from gigavim.pipelines.console import BarProgress, print_summary
    from gigavim.pipelines.stack.run import run_stack

    log_to(None, quiet=quiet or as_json)
    told = _dates_in(dates)
    resources = Resources(
        device=device,
        readers=readers,
        max_memory=bytes_in(max_memory),
        max_device_memory=bytes_in(max_device_memory, "--max-device-memory"),
    )
    try:
        with BarProgress(visible=not (quiet or as_json)) as progress:
            summary = or_one_line(
                lambda: run_stack(
                    images,
                    output,
                    config,
                    resources,
                    dates=told,
                    order=sequence.value,
                    per_date=per_date,
                    force=force,
                    command=sys.argv,
                    progress=progress,
                ),
                debug=debug,
            )
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print_json(summary.as_dict())
    elif not quiet:
        print_summary(summary)


def _dates_in(text: str | None) -> list[date] | None:
    """Return dates that the user gave with commas between them."""
    try:
        return None if text is None else [date.fromisoformat(d.strip()) for d in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} are no dates, as in 2024-05-01,2024-06-03", param_hint="--dates"
        ) from None
