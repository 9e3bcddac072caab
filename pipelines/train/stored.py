"""One label for each image, learned from stored features of tiles, whichever encoder made them.

Neither images nor tile encoder are needed: the table lists the stores of `gigavim run --encoder`.
Gated attention reads the tiles, projected to tokens, by themselves, or after a Vision Mamba where
the project's ``[model]`` has a ``depth``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gigavim.bag import BagConfig, GatedAttention
from gigavim.checkpoint import Model, ModelSpec, load_model, save_model
from gigavim.config import Precision
from gigavim.encoder import TileEmbedding, VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.head import ClassTable
from gigavim.pipelines.train.bags import Bags, bag_task
from gigavim.pipelines.train.begin import class_colours
from gigavim.pipelines.train.classifier import SPLIT, claim
from gigavim.pipelines.train.figures import Figures, figures_of
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import Project, as_text
from gigavim.pipelines.train.split import split_by_group, split_hash, split_of, write_split
from gigavim.pipelines.train.tiles import Tile, TileSet, tiles_in_table
from gigavim.store import ResultStore

logger = logging.getLogger(__name__)

SMALL = {"width": 128, "depth": 0, "state": 8}
"""Attention alone; what ``[model]`` leaves out."""


class TileReader(nn.Module):
    """Classifies images by features of their tiles."""

    def __init__(self, encoder: VisionMamba, bag: GatedAttention) -> None:
        super().__init__()
        self.encoder, self.bag = encoder, bag

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (b, K), of the tiles of images, shape (b, n, F)."""
        embedding = self.encoder.patch_embed
        assert isinstance(embedding, TileEmbedding)
        logits: Tensor = self.bag(self.encoder.mix(embedding.project(features)).tokens)
        return logits


@dataclass(frozen=True)
class Listed:
    """The stores of a table."""

    folder: Path
    tiles: tuple[Tile, ...]
    """File of each, its label, group and split."""

    def of_split(self, split: str) -> Listed:
        """Return those of a split."""
        return Listed(self.folder, tuple(tile for tile in self.tiles if tile.split == split))

    def bags(self, names: Sequence[str]) -> Bags:
        """Return their features and labels."""
        labels = [names.index(tile.label) for tile in self.tiles]
        return Bags(tuple(self.stores()), np.array(labels, np.int64))

    def stores(self) -> Iterator[Path]:
        """Yield where they are."""
        for tile in self.tiles:
            yield self.folder / tile.file


def names_stores(project: Project) -> bool:
    """Tell whether a project is of stored features: its table lists stores, and nothing else."""
    table = Path(project.data)
    if project.images or table.suffix.lower() != ".csv" or not table.is_file():
        return False
    files = [tile.file for tile in tiles_in_table(table, there=False)]
    return all(file.rstrip("/").endswith(".gigavim.zarr") for file in files)


def train_stored(
    project: Project,
    output: Path,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train a head of whole images on stored features of tiles; `train` has the parameters.

    Raises
    ------
    GigavimError
        If a store is not there, not complete or of other features than the first, a class has no
        image to train on, or the loss is not finite.
    """
    listed = _listed(project)
    spec = _spec_of(list(listed.stores()))
    divided = split_by_group(TileSet(listed.tiles, np.empty(0)), project.seed)
    listed, split = Listed(listed.folder, divided.tiles), split_hash(divided)
    names = tuple(sorted({tile.label for tile in listed.tiles}))
    folder = output.with_suffix(".train")
    claim(folder, f"{as_text(project)}\nsplit {split}\nof {spec.to_json()}\n", force=force)

    config = _architecture(project, spec)
    torch.manual_seed(project.seed)
    bag = GatedAttention(config.width, BagConfig(len(names)))
    model = TileReader(VisionMamba(config), bag)
    train, validation = (listed.of_split(split).bags(names) for split in ("train", "val"))
    for number, phase in enumerate(project.phases, 1):
        score = fit(
            model, bag_task(train, validation, len(names), phase, project.seed),
            phase, folder / f"phase-{number}",
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
        logger.info("phase %d of %d: validation %.4f", number, len(project.phases), score)

    spec = dataclasses.replace(
        spec,
        architecture=config,
        mode="whole",
        classes=ClassTable(names, class_colours(project, names)),
        bag=bag.config,
        training_data="; ".join(filter(None, (spec.training_data, project.training_data))),
        licence=project.licence,
        split=split,
    )
    save_model(output, model.encoder, spec, torch.float16, bag=model.bag)
    # What is written is what is measured: float16 weights.
    which = "test" if listed.of_split("test").tiles else "val"
    figures = _measure(load_model(output), listed.of_split(which))
    spec = dataclasses.replace(spec, metrics=figures.as_metrics(which))
    save_model(output, model.encoder, spec, torch.float16, bag=model.bag)
    write_split(output.with_suffix(SPLIT), divided)
    return figures


def evaluate_stored(model: Model, project: Project) -> tuple[str, Figures]:
    """Compare what a model says of stored features with the labels of their images.

    Returns
    -------
    split
        ``test`` where the images come with a split, or are those of the table beside the model;
        else ``all``.
    figures

    Raises
    ------
    GigavimError
        If features and model do not fit.
    """
    if not names_stores(project):
        raise GigavimError(
            f"{model.path} reads features of tiles: list their stores, NAME.gigavim.zarr, as "
            "`gigavim run --encoder` writes them"
        )
    listed = _listed(project)
    beside = model.path.with_suffix(SPLIT)
    if beside.is_file() and all(tile.split is None for tile in listed.tiles):
        listed = Listed(listed.folder, split_of(TileSet(listed.tiles, np.empty(0)), beside).tiles)
    found, wanted = _spec_of(list(listed.stores())), model.spec
    if (found.tiles, found.spacing, found.tile) != (wanted.tiles, wanted.spacing, wanted.tile):
        raise GigavimError(
            f"{project.data} lists features by {_features(found)}, and {model.path} reads those "
            f"by {_features(wanted)}; run that encoder"
        )
    test = listed.of_split("test")
    return ("test", _measure(model, test)) if test.tiles else ("all", _measure(model, listed))


def _listed(project: Project) -> Listed:
    table = Path(project.data)
    return Listed(table.parent, tuple(tiles_in_table(table, there=False)))


def _spec_of(stores: Sequence[Path]) -> ModelSpec:
    """Return what stores say of their tile encoder, if all say the same."""
    first: ModelSpec | None = None
    for path in stores:
        with ResultStore.open(path) as store:
            about, complete = store.attributes, store.complete
        if not complete:
            raise GigavimError(f"{path} is not complete; finish it with the same `gigavim run`")
        described = about["model"].get("spec")
        spec = described and ModelSpec.from_json(json.dumps(described))
        if not spec or spec.architecture.depth or spec.bag:
            raise GigavimError(
                f"{path} holds no features of a tile encoder alone; make it with `gigavim run "
                "--encoder`, without a model"
            )
        asked, unit = about["spacing"]["requested"], about["spacing"]["unit"]
        if asked is not None:
            spec = dataclasses.replace(spec, spacing=asked, unit=unit)
        first = first or spec
        if spec != first:
            raise GigavimError(
                f"{path} holds features by {_features(spec)}, and {stores[0]} by "
                f"{_features(first)}; run one encoder on all images"
            )
    if first is None:
        raise GigavimError("there are no images to learn from; list some")
    return first


def _features(spec: ModelSpec) -> str:
    """Name features, for people."""
    if spec.tiles is None:
        return "no tile encoder"
    name, sha256 = spec.tiles.name, spec.tiles.sha256
    return f"{name} ({sha256[:12]}) of tiles of {spec.tile} px at {spec.spacing:g} {spec.unit}"


def _architecture(project: Project, spec: ModelSpec) -> VisionMambaConfig:
    """Return what reads the features: the project's model in place of the one without blocks."""
    values = {**SMALL, "norm": "rms", **project.model}
    try:
        config = dataclasses.replace(spec.architecture, **values)
    except (TypeError, ValueError) as error:
        raise GigavimError(f"[model] is none that reads tiles ({error}); correct it") from error
    own = ("image_size", "patch", "stride", "bands", "features", "classes")
    changed = [name for name in own if getattr(config, name) != getattr(spec.architecture, name)]
    # A tile is known by its features alone, and read out by attention.
    placed = (config.position, config.class_token, config.rope, config.block)
    if changed or config.norm == "none" or placed != ("none", "none", "none", "vim"):
        raise GigavimError(
            "[model] reads tiles in their order, without positions, class tokens or patches of "
            "its own; leave all out but width, depth, state and the like"
        )
    return config


@torch.inference_mode()
def _measure(model: Model, listed: Listed) -> Figures:
    """Compare what a model says of images with their labels."""
    classes = model.spec.classes
    if model.bag is None or classes is None:
        raise GigavimError(f"{model.path} does not classify whole images")
    unknown = sorted({tile.label for tile in listed.tiles} - set(classes.names))
    if unknown:
        raise GigavimError(
            f"{model.path} does not know {unknown[0]!r}; it knows {', '.join(classes.names)}"
        )
    reader = TileReader(model.encoder, model.bag)
    bags = listed.bags(classes.names)
    probs = [reader(features)[0].softmax(-1) for features, _ in bags]
    groups = [tile.group for tile in listed.tiles]
    return figures_of(torch.stack(probs), torch.from_numpy(bags.labels), groups, classes.names)
