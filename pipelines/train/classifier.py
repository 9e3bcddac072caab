"""A classifier of tiles: trained, measured, written."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

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
from gigavim.pipelines.train.mosaic import PatchClassifier, mosaic_task
from gigavim.pipelines.train.project import Project, as_text
from gigavim.pipelines.train.split import write_split
from gigavim.pipelines.train.tiles import SplitName, TileSet

logger = logging.getLogger(__name__)

SPLIT = ".split.csv"
"""Beside a model, the split that it was trained on."""


def train_classifier(
    project: Project,
    tiles: TileSet,
    output: Path,
    begun: Model | None = None,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train on tiles that have their splits, and write the model; `train` has the parameters.

    Raises
    ------
    GigavimError
        If project, tiles and model do not fit, or the loss is not finite.
    """
    classes = tuple(sorted({tile.label for tile in tiles.tiles}))
    spec = first_spec(project, tiles, classes, begun)
    folder = output.with_suffix(".train")
    identity = f"{as_text(project)}\nsplit {spec.split}\n"
    claim(folder, identity + (f"from {begun.sha256}\n" if begun else ""), force=force)

    encoder = first_encoder(spec, begun, project.seed)
    sets = {name: labelled(tiles, name, spec) for name in ("train", "val")}
    for number, phase in enumerate(project.phases, 1):
        if phase.stride is not None:
            encoder = with_stride(encoder, phase.stride)
        learned = sets["train"], sets["val"], project.augmentation_in(phase), phase
        if phase.mosaic > 1:
            config = encoder.config
            task = mosaic_task(*learned, (config.patch, config.stride), project.seed)
        else:
            task = classification_task(*learned, project.seed)
        score = fit(
            encoder if phase.mosaic == 1 else PatchClassifier(encoder, tiles.pixels.shape[1]),
            task, phase, folder / f"phase-{number}",
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
        logger.info("phase %d of %d: validation %.4f", number, len(project.phases), score)
    spec = dataclasses.replace(spec, architecture=encoder.config)
    return _finish(output, encoder, spec, tiles)


def labelled(tiles: TileSet, split: SplitName, spec: ModelSpec) -> Labelled:
    """Return the tiles of a split as a model takes them."""
    assert spec.classes is not None  # it is a classifier
    rows = tiles.rows(split)
    labels = tiles.labels(spec.classes.names)[rows]
    return Labelled(
        tiles.pixels[rows], labels, len(spec.classes.names), spec.scale, spec.mean, spec.std
    )


def claim(folder: Path, identity: str, *, force: bool) -> None:
    """See that a folder holds the same run, or none.

    Raises
    ------
    GigavimError
        If it holds another.
    """
    record = folder / "run.txt"
    if force and record.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    figures = measure(load_model(output), tiles, split)
    metrics = figures.as_metrics(split)
    save_model(output, encoder, dataclasses.replace(spec, metrics=metrics), torch.float16)
    write_split(output.with_suffix(SPLIT), tiles)
    return figures


def measure(model: Model, tiles: TileSet, split: SplitName) -> Figures:
    """Compare what a classifier says of a split with its labels.

    Raises
    ------
    GigavimError
        If it does not know their classes or bands.
    """
    classes = model.spec.classes
    if classes is None:
        raise GigavimError(f"{model.path} has no classes; there is nothing to compare")
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
