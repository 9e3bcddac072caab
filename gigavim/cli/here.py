"""What is here: this machine, models, images to try things on."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gigavim.cli.options import Debug, Json
from gigavim.cli.outcome import fail, or_one_line, print_json
from gigavim.errors import GigavimError


class Sample(StrEnum):
    """What there are samples of."""

    slide = "slide"
    scene = "scene"


class Benchmark(StrEnum):
    """What can be timed."""

    scan = "scan"
    vim = "vim"
    run = "run"


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, which kernel will be used, what is missing and its fix."""
    from gigavim.pipelines.console import print_checkup
    from gigavim.pipelines.inspect import checkup

    facts = checkup()
    print_json(facts) if as_json else print_checkup(facts)


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
        or_one_line(lambda: known.fetch(fetch), debug=debug)
        files = [*(files or ()), fetch]
    listed = or_one_line(lambda: describe_models(files or ()), debug=debug)
    print_json(listed) if as_json else print_models(listed)


def sample(
    kind: Annotated[Sample, typer.Argument(help="slide or scene")],
    out: Annotated[Path, typer.Argument(help="The file to write: .svs or .tif.")],
    real: Annotated[
        bool, typer.Option("--real", help="Fetch a public CC0 slide instead of making one.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A scene of full size: 10,980 x 10,980 px, 13 bands.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make an image to try things on, offline."""
    from gigavim.sample import fetch_slide, make_full_scene, make_scene, make_slide

    if full and kind is Sample.slide:
        fail(GigavimError("--full makes a scene; there is no slide of full size"), code=2)

    if real and kind is Sample.scene:
        fail(GigavimError("--real fetches a slide; there is no real scene to fetch"), code=2)
    if real:
        make: Callable[[Path], None] = fetch_slide
    else:
        of_scene = make_full_scene if full else make_scene
        make = make_slide if kind is Sample.slide else of_scene
    or_one_line(lambda: make(out), debug=debug)
    print(out)


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
    or_one_line(lambda: show(f"bench-{what}", rows, plot, output), debug=debug)
