"""``gigavim train`` and ``gigavim evaluate``."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from gigavim.checkpoint import Model, ModelSpec, load_model, save_model
from gigavim.config import Precision
from gigavim.encoder import VisionMamba
from gigavim.errors import GigavimError
from gigavim.pipelines.train.batches import Labelled
from gigavim.pipelines.train.begin import first_encoder, first_spec, with_stride
from gigavim.pipelines.train.classification import classification_task, predict
from gigavim.pipelines.train.figures import Figures, figures_of
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import Project, as_text, read_project
from gigavim.pipelines.train.split import split_by_group, split_of, write_split
from gigavim.pipelines.train.tiles import SplitName, TileSet, read_tiles, with_splits

logger = logging.getLogger(__name__)

SPLIT = ".split.csv"
"""Beside a model, the split that it was trained on."""


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
    """Train a classifier of tiles and write it, its split and its log.

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
    tiles = split_by_group(read_tiles(project.data), project.seed)
    classes = tuple(sorted({tile.label for tile in tiles.tiles}))
    begun = None if start is None else load_model(start)
    spec = first_spec(project, tiles, classes, begun)
    folder = output.with_suffix(".train")
    identity = f"{as_text(project)}\nsplit {spec.split}\n"
    _claim(folder, identity + (f"from {begun.sha256}\n" if begun else ""), force=force)

    encoder = first_encoder(spec, begun, project.seed)
    sets = {name: labelled(tiles, name, spec) for name in ("train", "val")}
    for number, phase in enumerate(project.phases, 1):
        if phase.stride is not None:
            encoder = with_stride(encoder, phase.stride)
        task = classification_task(
            sets["train"], sets["val"], project.augmentation, phase, project.seed
        )
        score = fit(
            encoder, task, phase, folder / f"phase-{number}",
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
        logger.info("phase %d of %d: validation %.4f", number, len(project.phases), score)
    spec = dataclasses.replace(spec, architecture=encoder.config)
    return _finish(output, encoder, spec, tiles)


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
    if loaded.spec.classes is None:
        raise GigavimError(f"{loaded.path} has no classes; there is nothing to compare")
    tiles = read_tiles(data)
    beside = loaded.path.with_suffix(SPLIT)
    if all(tile.split is None for tile in tiles.tiles) and beside.is_file():
        tiles = split_of(tiles, beside)
    split: SplitName | None = "test" if len(tiles.rows("test")) else None
    if split is None:
        tiles = with_splits(tiles, ["test"] * len(tiles.tiles))
    figures = _figures(loaded, tiles, "test").as_dict(loaded.spec.classes.names)
    return {"model": str(loaded.path), "split": split or "all", **figures}


def labelled(tiles: TileSet, split: SplitName, spec: ModelSpec) -> Labelled:
    """Return the tiles of a split as a model takes them."""
    assert spec.classes is not None  # it is a classifier
    rows = tiles.rows(split)
    labels = tiles.labels(spec.classes.names)[rows]
    return Labelled(
        tiles.pixels[rows], labels, len(spec.classes.names), spec.scale, spec.mean, spec.std
    )


def _project(
    what: str | Path,
    data: str | Path | None,
    start: str | Path | None,
    patch_stride: int | None,
    epochs: int | None,
    seed: int | None,
) -> Project:
    """Read the project and put in what the caller chose."""
    project = read_project(what)
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


def _claim(folder: Path, identity: str, *, force: bool) -> None:
    """See that a folder holds the same run, or none.

    Raises
    ------
    GigavimError
        If it holds another.
    """
    if force and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "run.txt"
    if not record.exists():
        record.write_text(identity, encoding="utf-8")
    elif record.read_text(encoding="utf-8") != identity:
        raise GigavimError(
            f"{folder} holds a run with other settings or tiles; --force starts over, "
            "another --output keeps it"
        )


def _finish(output: Path, encoder: VisionMamba, spec: ModelSpec, tiles: TileSet) -> Figures:
    """Write the model and its split, with what it is worth on tiles that it never saw."""
    split: SplitName = "test" if len(tiles.rows("test")) else "val"
    save_model(output, encoder, spec, torch.float16)
    # What is written is what is measured: float16 weights.
    figures = _figures(load_model(output), tiles, split)
    metrics = {}
    for name, figure in figures.by_name.items():
        metrics[f"{split} {name}"] = figure.value
        metrics[f"{split} {name} low"] = figure.low
        metrics[f"{split} {name} high"] = figure.high
    save_model(output, encoder, dataclasses.replace(spec, metrics=metrics), torch.float16)
    write_split(output.with_suffix(SPLIT), tiles)
    return figures


def _figures(model: Model, tiles: TileSet, split: SplitName) -> Figures:
    """Compare with the labels of a split."""
    classes = model.spec.classes
    assert classes is not None  # a caller has seen to it
    unknown = sorted({tile.label for tile in tiles.tiles} - set(classes.names))
    if unknown:
        raise GigavimError(
            f"{model.path} does not know {unknown[0]!r}; it knows {', '.join(classes.names)}"
        )
    if tiles.pixels.shape[-1] != len(model.spec.bands):
        raise GigavimError(
            f"{model.path} takes {', '.join(model.spec.bands)}, and tiles have "
            f"{tiles.pixels.shape[-1]} bands"
        )
    data = labelled(tiles, split, model.spec)
    groups = [tiles.tiles[row].group for row in tiles.rows(split)]
    return figures_of(
        predict(model.encoder, data), torch.from_numpy(data.labels), groups, classes.names
    )
