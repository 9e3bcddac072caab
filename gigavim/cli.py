"""The command line: parses, calls, prints.

Errors are one line on stderr, and the exit code is 1; wrong usage is 2. Results go to stdout,
everything else to stderr. Heavy imports stay inside commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gigavim import __version__
from gigavim.config import Resources, RunConfig, parse_bytes
from gigavim.errors import GigavimError
from gigavim.memory import keep_freed_memory
from gigavim.orders import ORDERS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Read a whole slide or a satellite scene as one long sequence, and map it.",
)


class Mode(StrEnum):
    """How an image is read."""

    whole = "whole"
    tiles = "tiles"


class Sample(StrEnum):
    """What there are samples of."""

    slide = "slide"
    scene = "scene"


class Products(StrEnum):
    """What the encoder's matrix products are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Benchmark(StrEnum):
    """What can be timed."""

    scan = "scan"
    vim = "vim"
    run = "run"


Order = StrEnum("Order", {name: name for name in ORDERS})  # type: ignore[misc]

Images = Annotated[list[str], typer.Argument(help="Slides and scenes: files, or OME-Zarr folders.")]
Model_ = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A model of `gigavim models`, or a file of weights."),
]
Spacing_ = Annotated[
    float | None,
    typer.Option(
        "--spacing",
        "--mpp",
        help="Size of a pixel that the model sees: µm for a slide, CRS units for a scene. "
        "By default the model's.",
    ),
]
SourceSpacing = Annotated[
    float | None,
    typer.Option(
        "--source-spacing",
        "--source-mpp",
        help="Size of a pixel of the file, where the file does not say it or is wrong.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(help="Bands by name, index or wavelength: red,green,blue,nir or red=3,nir=4."),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        help="The image as one sequence, or each tile as one of its own. By default what the model "
        "is better in."
    ),
]
OrderOption = Annotated[
    Order | None, typer.Option(help="The order of the patches in the sequence, raster by default.")
]
Mask = Annotated[
    str | None, typer.Option(help="What to read: GeoJSON polygons, or a PNG or TIFF mask.")
]
NoMask = Annotated[bool, typer.Option("--no-mask", help="Read everything, background too.")]
Heads = Annotated[
    list[str] | None,
    typer.Option("--head", help="features, classify or clusters; more than one may be given."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory that a run may take, as in 4GiB. By default 60 % of what is free.",
    ),
]
MaxDeviceMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory of the GPU that a run may take. By default 60 % of what is free.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Read a whole slide or a satellite scene as one long sequence, and map it."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results, or NAME.gigavim.zarr.")
    ] = Path(),
    model: Model_ = None,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    mode: ModeOption = None,
    order: OrderOption = None,
    head: Heads = None,
    clusters: Annotated[int, typer.Option(min=1, max=255, help="Clusters of the map.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the clustering.")] = 0,
    mask: Mask = None,
    no_mask: NoMask = False,
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
    from gigavim.pipelines.batch import run_images
    from gigavim.pipelines.console import BarProgress, print_summary

    _log_to(log_file, quiet=quiet or as_json)
    config = RunConfig(
        model=model,
        mode=None if mode is None else mode.value,
        spacing=spacing,
        source_spacing=_square(source_spacing),
        bands=_listed(bands),
        order=None if order is None else order.value,  # type: ignore[arg-type]
        heads=tuple(head or ()),
        clusters=clusters,
        seed=seed,
        precision=precision.value,
        mask=mask,
        read_all=no_mask,
    )
    resources = Resources(
        device=device,
        readers=readers,
        max_memory=_size(max_memory),
        max_device_memory=_size(max_device_memory, "--max-device-memory"),
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
        _print_json({"images": [s.as_dict() for s in summaries], "failed": len(failed)})
    if failed and not as_json and len(summaries) > 1:
        print(f"{len(failed)} of {len(summaries)} images failed:", file=sys.stderr)
        for summary in failed:
            print(f"  {summary.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
def info(
    image: Annotated[str, typer.Argument(help="A slide or scene.")],
    model: Model_ = None,
    spacing: Spacing_ = None,
    source_spacing: SourceSpacing = None,
    bands: Bands = None,
    mode: ModeOption = None,
    mask: Mask = None,
    no_mask: NoMask = False,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an image is, and what a run would read: tokens, memory, time."""
    from gigavim.pipelines.console import print_description
    from gigavim.pipelines.inspect import describe

    config = RunConfig(
        model=model,
        mode=None if mode is None else mode.value,
        spacing=spacing,
        source_spacing=_square(source_spacing),
        bands=_listed(bands),
        mask=mask,
        read_all=no_mask,
    )
    resources = Resources(
        device=device,
        max_memory=_size(max_memory),
        max_device_memory=_size(max_device_memory, "--max-device-memory"),
    )
    facts = _or_one_line(lambda: describe(image, config, resources), debug=debug)
    _print_json(facts) if as_json else print_description(facts)


@app.command()
def train(
    what: Annotated[
        str, typer.Argument(help="Tiles (a folder, .zip or .csv), a project.toml, or landcover.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file.")] = Path(
        "model.safetensors"
    ),
    data: Annotated[str | None, typer.Option(help="Data in place of the project's.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="A model whose weights are begun with.")
    ] = None,
    patch_stride: Annotated[
        int | None, typer.Option(min=1, help="From patch to patch, in pixels: longer sequences.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each phase.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of split, weights and batches.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: all GPUs.")] = "auto",
    precision: Annotated[Products, typer.Option(help="Of matrix products.")] = Products.bfloat16,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for it too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model; the same command continues a run that was stopped."""
    commands, print_figures = _training()
    figures = _or_one_line(
        lambda: commands.train(
            what, output, data=data, start=start, patch_stride=patch_stride, epochs=epochs,
            seed=seed, device=device, precision=precision.value, tensorboard=tensorboard,
            progress=not as_json, force=force,
        ).as_dict(),
        debug=debug,
    )  # fmt: skip
    _print_json(figures) if as_json else print_figures(figures)


@app.command()
def pretrain(
    images: Annotated[
        list[str], typer.Argument(help="Slides, scenes, and folders of them or of tiles.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file.")] = Path(
        "encoder.safetensors"
    ),
    project: Annotated[
        str | None, typer.Option(help="A TOML file with [model], [[phases]] and the like.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of 100 batches each.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and batches.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: all GPUs.")] = "auto",
    precision: Annotated[Products, typer.Option(help="Of matrix products.")] = Products.bfloat16,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an encoder without labels; the same command continues a run that was stopped."""
    _training()
    from gigavim.pipelines.unlabelled import pretrain_on

    metrics = _or_one_line(
        lambda: pretrain_on(
            images, output, project=project, epochs=epochs, seed=seed, device=device,
            precision=precision.value, progress=not as_json, force=force,
        ),
        debug=debug,
    )  # fmt: skip
    if as_json:
        _print_json(metrics)
    else:
        share = metrics["explained"]
        print(f"{output}: {share:.1%} of the variance of hidden pixels is predicted")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model of `gigavim models`, or a file.")],
    data: Annotated[str, typer.Argument(help="What it was trained on, or like it.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare what a model says with labels: of the test split, if there is one."""
    commands, print_figures = _training()
    figures = _or_one_line(lambda: commands.evaluate(model, data), debug=debug)
    _print_json(figures) if as_json else print_figures(figures)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, devices, which kernel will be used, what is missing and its fix."""
    from gigavim.pipelines.console import print_checkup
    from gigavim.pipelines.inspect import checkup

    facts = checkup()
    _print_json(facts) if as_json else print_checkup(facts)


@app.command()
def models(
    files: Annotated[
        list[str] | None, typer.Argument(help="Names or files; by default all, and this folder's.")
    ] = None,
    fetch: Annotated[
        str | None, typer.Option(help="Download published weights, or hf://OWNER/REPO/FILE.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what can be run; download nothing but what is asked for."""
    from gigavim import models as known
    from gigavim.pipelines.console import print_models
    from gigavim.pipelines.inspect import describe_models

    if fetch is not None:
        _or_one_line(lambda: known.fetch(fetch), debug=debug)
        files = [*(files or ()), fetch]
    listed = _or_one_line(lambda: describe_models(files or ()), debug=debug)
    _print_json(listed) if as_json else print_models(listed)


@app.command()
def sample(
    kind: Annotated[Sample, typer.Argument(help="slide or scene")],
    out: Annotated[Path, typer.Argument(help="The file to write: .svs or .tif.")],
    real: Annotated[
        bool, typer.Option("--real", help="Fetch a public CC0 slide instead of making one.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make an image to try things on, offline."""
    from gigavim.sample import fetch_slide, make_scene, make_slide

    if real and kind is Sample.scene:
        _fail(GigavimError("--real fetches a slide; there is no real scene to fetch"), code=2)
    if real:
        make: Callable[[Path], None] = fetch_slide
    else:
        make = make_slide if kind is Sample.slide else make_scene
    _or_one_line(lambda: make(out), debug=debug)
    print(out)


@app.command()
def bench(
    what: Annotated[Benchmark, typer.Argument(help="scan, vim or run")],
    image: Annotated[
        Path | None, typer.Argument(help="For run: a slide or scene; the sample if none.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures.")] = Path(),
    debug: Debug = False,
) -> None:
    """Time this machine: a table, a plot, and JSON lines to compare with."""
    from gigavim.bench import run as whole_run
    from gigavim.bench import scan, show, vim

    # Generators: the one that is asked for runs.
    benchmarks = {
        Benchmark.scan: (scan.bench_scan(threads=(1, os.cpu_count() or 1)), scan.PLOT),
        Benchmark.vim: (vim.bench_vim(), vim.PLOT),
        Benchmark.run: (whole_run.bench_run(image), whole_run.PLOT),
    }
    rows, plot = benchmarks[what]
    _or_one_line(lambda: show(f"bench-{what}", rows, plot, output), debug=debug)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr."""
    # Readers and encoder share the cores: a thread that spins while it waits for others keeps them
    # from what they are waiting for. OpenMP reads this when PyTorch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    app()


def _square(side: float | None) -> tuple[float, float] | None:
    return None if side is None else (side, side)


def _listed(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))


def _training() -> Any:
    """Return the commands of training, and what prints their figures."""
    from importlib.util import find_spec

    if find_spec("lightning") is None:
        _fail(GigavimError("training needs: pip install 'gigavim[train]'"))
    from gigavim.pipelines.train import commands
    from gigavim.pipelines.train.show import print_figures

    return commands, print_figures


def _size(text: str | None, option: str = "--max-memory") -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _or_one_line(call: Any, *, debug: bool) -> Any:
    try:
        return call()
    except GigavimError as error:
        if debug:
            raise
        _fail(error)


def _fail(error: GigavimError, code: int = 1) -> NoReturn:
    print(f"gigavim: {error}", file=sys.stderr)
    raise typer.Exit(code)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _log_to(path: Path | None, *, quiet: bool) -> None:
    # With no handler at all, Python prints warnings to stderr.
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if path is not None:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    if not quiet:
        to_screen = logging.StreamHandler()
        to_screen.setLevel(logging.WARNING)
        handlers.append(to_screen)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=handlers,
        force=True,
    )
