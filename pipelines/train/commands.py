"""``gigavim train`` and ``gigavim evaluate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gigavim.checkpoint import load_model
from gigavim.config import Precision
from gigavim.errors import GigavimError
from gigavim.pipelines.train.bags import evaluate_bags, train_bags
from gigavim.pipelines.train.classifier import SPLIT, measure, train_classifier
from gigavim.pipelines.train.dense import read_nuclei
from gigavim.pipelines.train.dense_train import test_figures, train_nuclei
from gigavim.pipelines.train.figures import Figures
from gigavim.pipelines.train.listing import names_annotations
from gigavim.pipelines.train.patch_classifier import evaluate_annotated, train_annotated
from gigavim.pipelines.train.project import Project, project_of
from gigavim.pipelines.train.split import split_by_group, split_of
from gigavim.pipelines.train.stored import evaluate_stored, names_stores, train_stored
from gigavim.pipelines.train.tiles import read_tiles, with_splits


def train(
    what: str | Path,
    output: Path,
    *,
    data: str | Path | None = None,
    start: str | Path | None = None,
    patch_stride: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train a model on tiles or images with labels, and write it, its split and its log.

    A run that was stopped is continued by the same call.

    Parameters
    ----------
    what
        A project file, the name of a shipped one, or a data set for `read_tiles`.
    output
        The model file. Beside it go the split, ``NAME.split.csv``, and the folder ``NAME.train`` of
        checkpoints, logs and curves.
    data
        A data set in place of the project's.
    start
        A model whose weights are begun with; its architecture and normalisation are taken over.
    patch_stride
        From one patch to the next, in pixels, in place of the model's.
    epochs, seed
        In place of the project's; the epochs are of each phase.
    force
        Train anew, whatever is there.

    Returns
    -------
    figures
        On the test split, or without one on the validation split, of the model as it was written.

    Raises
    ------
    GigavimError
        If project, tiles or model are at fault, or the loss is not finite.
    """
    project = _project(what, data, start, patch_stride, epochs, seed)
    if project.task == "nuclei":
        if start is not None or patch_stride is not None:
            raise GigavimError("a model of nuclei begins with random weights and its own patches")
        return train_nuclei(
            project, Path(project.data), output,
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
            force=force,
        )  # fmt: skip
    begun = None if start is None else load_model(start)
    if project.task == "bags" or names_annotations(project):
        if project.task == "bags" and names_stores(project):
            if begun is not None:
                raise GigavimError("features are stored, and their encoder known; leave out --from")
            return train_stored(
                project, output,
                device=device, precision=precision, tensorboard=tensorboard, progress=progress,
                force=force,
            )  # fmt: skip
        begin = train_bags if project.task == "bags" else train_annotated
        return begin(
            project, output, begun,
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
            force=force,
        )  # fmt: skip
    tiles = split_by_group(read_tiles(project.data), project.seed)
    return train_classifier(
        project, tiles, output, begun,
        device=device, precision=precision, tensorboard=tensorboard, progress=progress, force=force,
    )  # fmt: skip


def evaluate(model: str | Path, data: str | Path) -> dict[str, Any]:
    """Compare what a model says of tiles with their labels.

    Where the tiles come with a split, or are those of ``NAME.split.csv`` beside the model, the test
    tiles alone are compared.

    Returns
    -------
    figures
        As JSON takes it; ``split`` says which tiles were compared.

    Raises
    ------
    GigavimError
        If model or tiles are at fault, or the model does not know their classes or bands.
    """
    loaded = load_model(model)
    if loaded.decoder is not None:
        figures = test_figures(loaded, read_nuclei(Path(data))["test"])
        return {"model": str(loaded.path), "split": "test", **figures.as_dict()}
    project = project_of(data)
    if loaded.spec.tiles is not None:
        which, figures = evaluate_stored(loaded, project)
        return {"model": str(loaded.path), "split": which, **figures.as_dict()}
    if loaded.bag is not None or names_annotations(project):
        compare = evaluate_annotated if loaded.bag is None else evaluate_bags
        which, figures = compare(loaded, project)
        return {"model": str(loaded.path), "split": which, **figures.as_dict()}
    tiles = read_tiles(project.data)
    beside = loaded.path.with_suffix(SPLIT)
    if all(tile.split is None for tile in tiles.tiles) and beside.is_file():
        tiles = split_of(tiles, beside)
    which = "test" if len(tiles.rows("test")) else "all"
    if which == "all":
        tiles = with_splits(tiles, ["test"] * len(tiles.tiles))
    figures = measure(loaded, tiles, "test")
    return {"model": str(loaded.path), "split": which, **figures.as_dict()}


def _project(
    what: str | Path,
    data: str | Path | None,
    start: str | Path | None,
    patch_stride: int | None,
    epochs: int | None,
    seed: int | None,
) -> Project:
    """Read the project and put in what the caller chose."""
    project = project_of(what)
    if data is not None:
        project = dataclasses.replace(project, data=str(data))
    if not project.data:
        raise GigavimError(f"{what} names no tiles; pass --data")
    if start is not None and project.model:
        raise GigavimError("a model that is begun with brings its architecture; leave out [model]")
    phases = project.phases
    if patch_stride is not None:
        phases = tuple(dataclasses.replace(phase, stride=patch_stride) for phase in phases)
    if epochs is not None:
        phases = tuple(dataclasses.replace(phase, epochs=epochs) for phase in phases)
    seed = project.seed if seed is None else seed
    return dataclasses.replace(project, phases=phases, seed=seed)
