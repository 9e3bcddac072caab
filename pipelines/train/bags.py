"""Images of any size with one label each: a head by attention over the features of an encoder.

The encoder stays as it is. Its features are those of `gigavim run`, one store for each image beside
the other files of the run: computed once, in little memory, and taken up where a run was stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.bag import BagConfig, GatedAttention, attend
from gigavim.checkpoint import Model, load_model, save_model
from gigavim.config import Precision, Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.head import ClassTable
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.annotated import cross_entropy, index_accuracies, inverse
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.begin import class_colours
from gigavim.pipelines.train.classifier import SPLIT, claim
from gigavim.pipelines.train.drawn import DrawnBatches
from gigavim.pipelines.train.figures import Figures, figures_of
from gigavim.pipelines.train.listing import ListedImage, divided, labelled_images, table_of, tested
from gigavim.pipelines.train.loop import Batches, Task, fit
from gigavim.pipelines.train.project import Phase, Project, as_text
from gigavim.pipelines.train.split import split_hash, write_split
from gigavim.store import ResultStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bags:
    """Images as their features, and their classes."""

    stores: tuple[Path, ...]
    labels: NDArray[np.int64]
    """Shape (n,)."""

    def batch(self, rows: NDArray[np.int64], random: np.random.Generator | None = None) -> Batch:
        """Return the features of one image, shape (1, tokens, D), and its class, shape (1,)."""
        (row,) = rows
        with ResultStore.open(self.stores[row]) as store:
            valid = store.values("tokens/valid") > 0
            # In raster order, whatever the store's.
            index = store.values("tokens/grid_index")[valid]
            order = np.lexsort((index[:, 1], index[:, 0]))
            features = store.values("tokens/features")[valid][order]
        return torch.from_numpy(features.astype(np.float32))[None], torch.from_numpy(
            self.labels[rows]
        )

    def training(self, seed: int, rank: int, ranks: int) -> Batches:
        """Return an image at a time for each process, in a new order each epoch."""
        return DrawnBatches(self.batch, len(self.labels), ranks, seed, rank, ranks)

    def __iter__(self) -> Iterator[Batch]:
        """Return all, in order."""
        for row in range(len(self.labels)):
            yield self.batch(np.array([row]))


def bag_task(train: Bags, validation: Bags, classes: int, phase: Phase, seed: int) -> Task:
    """Return the task of telling whole images apart."""
    counts = np.bincount(train.labels, minlength=classes)
    return Task(
        training=partial(train.training, seed),
        validation=validation,
        loss=cross_entropy(inverse(counts) if phase.class_weights else None, phase.smoothing),
        metrics=index_accuracies(classes),
        monitor="balanced_accuracy" if phase.class_weights else "accuracy",
    )


def train_bags(
    project: Project,
    output: Path,
    begun: Model | None,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train a head of whole images on the features of a model; `train` has the parameters.

    Raises
    ------
    GigavimError
        If there is no model to begin with, an image cannot be run, a class has no image to train
        on, or the loss is not finite.
    """
    if begun is None:
        raise GigavimError(
            "a head of whole images stands on an encoder that stays as it is; pass one with --from"
        )
    if project.model or any(phase.stride is not None for phase in project.phases):
        raise GigavimError("the encoder of whole images stays as it is; leave out model and stride")
    listed = divided(labelled_images(project), project.seed, by_label=True)
    names = tuple(sorted({each.tile.label for each in listed}))
    split = split_hash(table_of(listed))
    folder = output.with_suffix(".train")
    claim(folder, f"{as_text(project)}\nsplit {split}\nfrom {begun.sha256}\n", force=force)

    bags = {
        split: _read(_of_split(listed, split), names, begun, folder / "features", device)
        for split in ("train", "val")
    }
    torch.manual_seed(project.seed)
    head = GatedAttention(begun.spec.architecture.width, BagConfig(len(names)))
    for number, phase in enumerate(project.phases, 1):
        score = fit(
            head, bag_task(bags["train"], bags["val"], len(names), phase, project.seed),
            phase, folder / f"phase-{number}",
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
        logger.info("phase %d of %d: validation %.4f", number, len(project.phases), score)

    spec = dataclasses.replace(
        begun.spec,
        architecture=dataclasses.replace(begun.spec.architecture, classes=0),
        classes=ClassTable(names, class_colours(project, names)),
        decoder=None,
        nuclei=None,
        bag=head.config,
        training_data="; ".join(filter(None, (begun.spec.training_data, project.training_data))),
        licence=project.licence,
        metrics={},
        split=split,
    )
    begun.encoder.cpu().head = torch.nn.Identity()
    save_model(output, begun.encoder, spec, torch.float16, bag=head)
    # What is written is what is measured: float16 weights.
    which = "test" if _of_split(listed, "test") else "val"
    figures = _measure(load_model(output), _of_split(listed, which), device)
    spec = dataclasses.replace(spec, metrics=figures.as_metrics(which))
    save_model(output, begun.encoder, spec, torch.float16, bag=head)
    write_split(output.with_suffix(SPLIT), table_of(listed))
    return figures


def evaluate_bags(model: Model, project: Project) -> tuple[str, Figures]:
    """Compare what a model says of whole images with their labels.

    Returns
    -------
    split
        Which images were compared, as of `tested`.
    figures

    Raises
    ------
    GigavimError
        If images and model do not fit.
    """
    split, listed = tested(labelled_images(project), model.path.with_suffix(SPLIT))
    return split, _measure(model, listed, "auto")


def _of_split(listed: Sequence[ListedImage], split: str) -> list[ListedImage]:
    return [each for each in listed if each.tile.split == split]


def _read(
    listed: Sequence[ListedImage],
    names: Sequence[str],
    model: Model,
    folder: Path,
    device: str,
) -> Bags:
    """Run the encoder on images, or take up where that was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    stores = []
    config = RunConfig(model=str(model.path), mode="whole", heads=("features",))
    for number, each in enumerate(listed, 1):
        own = each.source.spacing
        given = (own.y, own.x) if own is not None and own.origin == "user" else None
        name = hashlib.sha256(each.tile.file.encode()).hexdigest()[:16]
        stores.append(folder / f"{name}.gigavim.zarr")
        summary = run_image(
            each.source.path, stores[-1], dataclasses.replace(config, source_spacing=given),
            Resources(device=device),
        )  # fmt: skip
        logger.info("%s: %s, %d of %d", each.tile.file, summary.status, number, len(listed))
    labels = [names.index(each.tile.label) for each in listed]
    return Bags(tuple(stores), np.array(labels, np.int64))


def _measure(model: Model, listed: Sequence[ListedImage], device: str) -> Figures:
    """Compare what a model says of images with their labels, in a folder that then goes."""
    classes = model.spec.classes
    if model.bag is None or classes is None:
        raise GigavimError(
            f"{model.path} has no head of whole images; train one with task = 'bags'"
        )
    unknown = sorted({each.tile.label for each in listed} - set(classes.names))
    if unknown:
        raise GigavimError(
            f"{model.path} does not know {unknown[0]!r}; it knows {', '.join(classes.names)}"
        )
    with tempfile.TemporaryDirectory(prefix="gigavim-") as folder:
        bags = _read(listed, classes.names, model, Path(folder), device)
        scores = []
        for path in bags.stores:
            with ResultStore.open(path) as store:
                valid = store.values("tokens/valid") > 0
                scores.append(attend(model.bag, store.array("tokens/features"), valid).scores)
    groups = [each.tile.group for each in listed]
    probs = torch.from_numpy(np.stack(scores))
    return figures_of(probs, torch.from_numpy(bags.labels), groups, classes.names)
