"""Train models, and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gigavim.cli.options import Debug, Json, Products, pairs_in
from gigavim.cli.outcome import fail, or_one_line, print_json
from gigavim.errors import GigavimError


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
    figures = or_one_line(
        lambda: commands.train(
            what, output, data=data, start=start, patch_stride=patch_stride, epochs=epochs,
            seed=seed, device=device, precision=precision.value, tensorboard=tensorboard,
            progress=not as_json, force=force,
        ).as_dict(),
        debug=debug,
    )  # fmt: skip
    print_json(figures) if as_json else print_figures(figures)


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

    metrics = or_one_line(
        lambda: pretrain_on(
            images, output, project=project, epochs=epochs, seed=seed, device=device,
            precision=precision.value, progress=not as_json, force=force,
        ),
        debug=debug,
    )  # fmt: skip
    if as_json:
        print_json(metrics)
    else:
        print(f"{output}: " + ", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model of `gigavim models`, a file, or a NAME.gigavim.zarr.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="What the model was trained on, or like it; of a scene's store a raster or shapes "
            "with what is on the ground."
        ),
    ],
    head: Annotated[str | None, typer.Option(help="Of a store: which class map.")] = None,
    values: Annotated[
        str | None,
        typer.Option(metavar="NAME=NUMBER,...", help="What the numbers in a raster of labels are."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of shapes: the one with the class.")] = None,
    called: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="CLASS=NAME,...",
            help="What classes of a store's map are called in the labels; * is all others.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare what a model says with labels: of the test split, if there is one.

    Or compare the map in a store with what is on the ground.
    """
    commands, print_figures = _training()
    from gigavim.pipelines.evaluate import evaluate_result, is_result

    numbers = {name: _whole(number) for name, number in pairs_in(values, "--values").items()}
    names = pairs_in(called, "--as")
    if is_result(model):
        figures = or_one_line(
            lambda: evaluate_result(
                model, data, head=head, values=numbers or None, column=column, names=names
            ),
            debug=debug,
        )
    elif head or values or column or called:
        raise typer.BadParameter("--head, --values, --column and --as are for a store's map")
    else:
        figures = or_one_line(lambda: commands.evaluate(model, data), debug=debug)
    print_json(figures) if as_json else print_figures(figures)


def _whole(number: str) -> int:
    try:
        return int(number)
    except ValueError:
        raise typer.BadParameter(f"{number!r} is no whole number", param_hint="--values") from None


def _training() -> Any:
    """Return the commands of training, and what prints their figures."""
    from importlib.util import find_spec

    if find_spec("lightning") is None:
        fail(GigavimError("training needs: pip install 'gigavim[train]'"))
    from gigavim.pipelines.train import commands
    from gigavim.pipelines.train.show import print_figures

    return commands, print_figures
