"""Map what changed between two dates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gigavim.cli.options import (
    Aoi,
    Bands,
    Bounds,
    Crs,
    Debug,
    Device,
    ExcludeQc,
    Json,
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

if TYPE_CHECKING:
    from gigavim.pipelines.change import ChangeSummary


def change(
    before: Annotated[str, typer.Argument(help="A finished NAME.gigavim.zarr, or a scene.")],
    after: Annotated[str, typer.Argument(help="Of the same place, by the same model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The store, NAME.gigavim.zarr.")
    ] = Path("change.gigavim.zarr"),
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Score of a changed cell; found in the scores if not."),
    ] = None,
    model: Model_ = None,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    crs: Crs = None,
    bounds: Bounds = None,
    aoi: Aoi = None,
    mask_clouds: MaskClouds = False,
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
    """Map what changed between two dates, by their features; scenes are run first.

    The options of a run are for scenes; results are compared as they are.
    """
    config = config_in(locals())
    from gigavim.pipelines.change import map_change, results_of
    from gigavim.pipelines.console import BarProgress

    log_to(None, quiet=quiet or as_json)
    resources = Resources(
        device=device,
        readers=readers,
        max_memory=bytes_in(max_memory),
        max_device_memory=bytes_in(max_device_memory, "--max-device-memory"),
    )
    are_results = [name.rstrip("/").endswith(".gigavim.zarr") for name in (before, after)]
    if are_results[0] != are_results[1]:
        raise typer.BadParameter("give two results, or two scenes", param_hint="AFTER")

    def compare() -> ChangeSummary:
        stores = Path(before), Path(after)
        if not are_results[0]:
            with BarProgress(visible=not (quiet or as_json)) as progress:
                stores = results_of(
                    (before, after), output.parent, config, resources,
                    force=force, command=sys.argv, progress=progress,
                )  # fmt: skip
        return map_change(*stores, output, threshold=threshold, force=force, command=sys.argv)

    summary: ChangeSummary = or_one_line(compare, debug=debug)
    if as_json:
        print_json(summary.as_dict())
    elif not quiet:
        _print(summary)


def _print(summary: ChangeSummary) -> None:
    area = ""
    if summary.changed_area is not None:
        area = f", {summary.changed_area:,.4g} {summary.area_unit}"
    print(
        f"{summary.changed:.1%} of {summary.cells:,} cells changed{area} "
        f"(score above {summary.threshold:.3f})"
    )
    for name in ("store", "overlay", "geotiff", "score_geotiff"):
        if getattr(summary, name):
            print(f"  {getattr(summary, name)}")
