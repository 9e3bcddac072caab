"""Map images, and look at them before."""

from __future__ import annotations

import sys
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
    Encoder,
    ExcludeQc,
    Heads,
    Images,
    Json,
    Mask,
    MaskClouds,
    MaxDeviceMemory,
    MaxMemory,
    Model_,
    ModeOption,
    NoMask,
    OrderOption,
    Products,
    SourceSpacing,
    Spacing_,
    StainOption,
    Tile,
    Trust,
    bytes_in,
    config_in,
)
from gigavim.cli.outcome import log_to, or_one_line, print_json
from gigavim.config import Resources


def run(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results, or NAME.gigavim.zarr.")
    ] = Path(),
    model: Model_ = None,
    encoder: Encoder = None,
    tile: Tile = None,
    trust: Trust = False,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    crs: Crs = None,
    bounds: Bounds = None,
    aoi: Aoi = None,
    mask_clouds: MaskClouds = False,
    mode: ModeOption = None,
    order: OrderOption = None,
    head: Heads = None,
    clusters: Annotated[int, typer.Option(min=1, max=255, help="Clusters of the map.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the clustering.")] = 0,
    mask: Mask = None,
    no_mask: NoMask = False,
    exclude_qc: ExcludeQc = False,
    stain: StainOption = None,
    device: Device = "auto",
    precision: Annotated[
        Products, typer.Option(help="Of matrix products: bfloat16 is faster, and 1 % off.")
    ] = Products.float32,
    readers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = 2,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the sequence of an image.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask cluster to share it by, tcp://HOST:PORT.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Write a log here.")] = None,
    debug: Debug = False,
) -> None:
    """Map images: a store, and a picture beside it, for each.

    A finished store is skipped, an unfinished one continued.
    """
    config = config_in(locals())
    from gigavim.pipelines.batch import run_images
    from gigavim.pipelines.console import BarProgress, print_summary

    log_to(log_file, quiet=quiet or as_json)
    resources = Resources(
        device=device,
        readers=readers,
        max_memory=bytes_in(max_memory),
        max_device_memory=bytes_in(max_device_memory, "--max-device-memory"),
        workers=workers,
        scheduler=scheduler,
    )
    try:
        with BarProgress(visible=not (quiet or as_json)) as progress:
            summaries = run_images(
                images,
                output,
                config,
                resources,
                force=force,
                command=sys.argv,
                progress=progress,
                on_done=None if quiet or as_json else print_summary,
                debug=debug,
            )
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise typer.Exit(1) from None
    failed = [summary for summary in summaries if summary.status == "failed"]
    if as_json:
        print_json({"images": [s.as_dict() for s in summaries], "failed": len(failed)})
    if failed and not as_json and len(summaries) > 1:
        print(f"{len(failed)} of {len(summaries)} images failed:", file=sys.stderr)
        for summary in failed:
            print(f"  {summary.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def info(
    image: Annotated[str, typer.Argument(help="A slide or scene.")],
    model: Model_ = None,
    encoder: Encoder = None,
    tile: Tile = None,
    trust: Trust = False,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    crs: Crs = None,
    bounds: Bounds = None,
    aoi: Aoi = None,
    mask_clouds: MaskClouds = False,
    mode: ModeOption = None,
    mask: Mask = None,
    no_mask: NoMask = False,
    exclude_qc: ExcludeQc = False,
    stain: StainOption = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an image is, and what a run would read: tokens, memory, time."""
    config = config_in(locals())
    from gigavim.pipelines.console import print_description
    from gigavim.pipelines.inspect import describe

    resources = Resources(
        device=device,
        max_memory=bytes_in(max_memory),
        max_device_memory=bytes_in(max_device_memory, "--max-device-memory"),
    )
    facts = or_one_line(lambda: describe(image, config, resources), debug=debug)
    print_json(facts) if as_json else print_description(facts)
