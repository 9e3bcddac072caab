"""Map many images by many workers."""

from __future__ import annotations

import dataclasses
import sys
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
    Encoder,
    ExcludeQc,
    Heads,
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
    names_in,
)
from gigavim.cli.outcome import log_to, or_one_line, print_json
from gigavim.config import Resources


class Cluster(StrEnum):
    """Who starts workers elsewhere."""

    slurm = "slurm"


def batch(
    images: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, or tables *.csv with a column image."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")],
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
    readers: Annotated[int, typer.Option(min=1, help="Threads of a worker that read.")] = 2,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of this machine, an image each; or jobs of a cluster."),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs of this machine, a process each: 0,1,2,3.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Workers of a Dask scheduler, tcp://HOST:PORT.")
    ] = None,
    scheduler_file: Annotated[
        Path | None, typer.Option(help="The same, by the file that the scheduler wrote.")
    ] = None,
    cluster: Annotated[Cluster | None, typer.Option(help="Have workers started by SLURM.")] = None,
    cluster_config: Annotated[
        Path | None, typer.Option(help="YAML of what dask-jobqueue is to ask for.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="After failures of disk or network that may pass.")
    ] = 2,
    stage: Annotated[
        Path | None, typer.Option(help="A local folder to copy images to before they are read.")
    ] = None,
    stage_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most that copies take there, as in 200GB.")
    ] = None,
    pages: Annotated[
        bool, typer.Option("--html", help="Write a page for each image, and an index.")
    ] = False,
    performance_report: Annotated[
        Path | None, typer.Option(help="Have Dask write here what workers did, as HTML.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, how long, how much space.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Write a log here.")] = None,
    debug: Debug = False,
) -> None:
    """Map many images by many workers, the largest first.

    Finished images are skipped, unfinished ones continued, and what fails costs no other its
    result. The folder gets ledger.jsonl, what happened, and summary.csv, what became of each image.
    """
    config = config_in(locals())
    from gigavim.pipelines.batches.batch import Batch, forecast, run_batch
    from gigavim.pipelines.batches.cluster import Where
    from gigavim.pipelines.batches.console import Lines, print_counts, print_forecast, totals_of
    from gigavim.pipelines.batches.manifest import read_manifest
    from gigavim.pipelines.batches.staging import StagePlan

    if (cluster is None) != (cluster_config is None):
        raise typer.BadParameter("--cluster and --cluster-config go together")
    if sum(item is not None for item in (gpus, scheduler, scheduler_file, cluster)) > 1:
        raise typer.BadParameter(
            "--gpus, --scheduler, --scheduler-file and --cluster exclude each other"
        )
    if stage is None and stage_size is not None:
        raise typer.BadParameter("--stage-size is of --stage, which is not there")
    log_to(log_file, quiet=quiet or as_json)
    where = Where(workers, names_in(gpus) or (), scheduler, scheduler_file, cluster_config)
    plan = Batch(
        output,
        where,
        Resources(
            device="cuda" if gpus else device,
            readers=readers,
            max_memory=bytes_in(max_memory),
            max_device_memory=bytes_in(max_device_memory, "--max-device-memory"),
        ),
        retries,
        force,
        None if stage is None else StagePlan(stage, bytes_in(stage_size, "--stage-size")),
        pages,
        performance_report,
        tuple(sys.argv),
    )
    jobs = or_one_line(lambda: read_manifest(images, output, config), debug=debug)
    try:
        if dry_run:
            rows = or_one_line(lambda: list(forecast(jobs, plan)), debug=debug)
            if as_json:
                listed = [dataclasses.asdict(row) for row in rows]
                print_json({"images": listed, **totals_of(rows, where.count)})
            else:
                print_forecast(rows, where.count)
            return
        lines = Lines(len(jobs), quiet=quiet or as_json)
        counts = or_one_line(lambda: run_batch(jobs, plan, lines), debug=debug)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print_json({"counts": counts, "output": str(output)})
    elif not quiet:
        print_counts(counts, str(output))
    if counts.get("failed"):
        raise typer.Exit(1)
