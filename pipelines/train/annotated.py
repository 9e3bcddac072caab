"""Windows of annotated images: what is read of them, and how patches are learned to be named.

A window is a square of patches, one sequence, as the image is when it is run as a whole. Patches
that a run would not read, beside the tissue or without data, are no part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.foreground import foreground
from gigavim.geometry import Grid
from gigavim.pipelines.train.augment import Augmentation, cleared, restained, with_bands_dropped
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.drawn import DrawnBatches
from gigavim.pipelines.train.labels import NONE, read_labels
from gigavim.pipelines.train.listing import ListedImage
from gigavim.pipelines.train.loop import Task
from gigavim.pipelines.train.project import Phase
from gigavim.sources import Plane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image at one spacing, and which patches of it have which class."""

    listed: ListedImage
    plane: Plane
    grid: Grid
    there: NDArray[np.bool_]
    """Whether a run reads a patch, shape (rows, columns)."""
    labels: NDArray[np.int64]
    """Index of its class, `NONE` where it has none or is not read, shape (rows, columns)."""


@dataclass(frozen=True)
class Classes:
    """All that annotations name."""

    names: tuple[str, ...]
    colours: Mapping[str, str]
    """As ``#rrggbb``, of those to which an annotation gives one."""


def read_annotated(
    listed: Sequence[ListedImage],
    folder: Path,
    config: VisionMambaConfig,
    spacing: float | None,
    values: Mapping[str, int],
) -> tuple[list[AnnotatedImage], Classes]:
    """Read the annotations of images, and find their foreground.

    Parameters
    ----------
    folder
        Where the annotations are looked for.
    spacing
        Side of a pixel that the model sees; each image's own if None.
    values
        As `read_labels` takes them.

    Raises
    ------
    GigavimError
        If an image or its annotations cannot be read, or these name fewer than two classes.
    """
    read = []
    for each in listed:
        source = each.source
        if spacing is not None and source.spacing is None:
            raise GigavimError(
                f"{source.path} does not say how large a pixel is; write source_spacing in the "
                "project"
            )
        plane = Plane.at(source, spacing)
        finest = source.levels[0]
        grid = Grid.over(
            finest.height, finest.width, patch=config.patch, stride=config.stride,
            ratio_y=plane.ratio_y, ratio_x=plane.ratio_x,
        )  # fmt: skip
        labels = read_labels(folder / each.tile.label, source, grid, values)
        read.append((each, plane, grid, foreground(source, grid), labels))
    names = tuple(sorted({name for *_, labels in read for name in labels.names}))
    if len(names) < 2:
        raise GigavimError(
            f"the annotations name {names[0]!r} alone; a classifier needs two classes or more"
        )
    images, drawn = [], 0
    for listed_image, plane, grid, there, labels in read:
        index = np.array([*(names.index(name) for name in labels.names), NONE])
        layout = index[labels.layout]
        drawn += int((layout != NONE).sum())
        layout[~there] = NONE
        images.append(AnnotatedImage(listed_image, plane, grid, there, layout))
    outside = drawn - sum(int((image.labels != NONE).sum()) for image in images)
    if outside:
        logger.warning(
            "%d of %d annotated patches lie beside the tissue or data and are left out",
            outside, drawn,
        )  # fmt: skip
    colours = {name: colour for *_, labels in read for name, colour in labels.colours.items()}
    return images, Classes(names, {name: colours[name] for name in names if name in colours})


def check_classes(images: Sequence[AnnotatedImage], names: Sequence[str]) -> None:
    """See that each class can be learned.

    Raises
    ------
    GigavimError
        If one lies under no patch that is read of the training images.
    """
    training = [image.labels for image in images if image.listed.tile.split == "train"]
    counts = counted(training, len(names))
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise GigavimError(
                f"class {name!r} lies under the centre of no patch of the training images; "
                "draw more of it, or drop it"
            )


def counted(layouts: Sequence[NDArray[np.int64]], classes: int) -> NDArray[np.int64]:
    """Return how many patches have each class, shape (K,)."""
    found = np.concatenate([layout[layout != NONE] for layout in layouts])
    return np.bincount(found, minlength=classes)


@dataclass(frozen=True)
class Windows:
    """Squares of patches of annotated images, each with a class somewhere."""

    images: tuple[AnnotatedImage, ...]
    side: int
    """In patches."""
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    places: tuple[tuple[int, int, int], ...]
    """Image, row and column of the first patch of each."""

    @classmethod
    def of(
        cls,
        images: Sequence[AnnotatedImage],
        side: int,
        scale: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> Windows:
        """Cut images; squares without a class are left out."""
        places = [
            (number, block.row, block.column)
            for number, image in enumerate(images)
            for block in image.grid.blocks(side, side)
            if (image.labels[block.slices] != NONE).any()
        ]
        return cls(tuple(images), side, scale, mean, std, tuple(places))

    def read(self, number: int, row: int, column: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read a square, which may reach beyond the image.

        Returns
        -------
        pixels
            0 to 1 where they were 0 to 255, shape (band, height, width).
        valid
            Which of them are known, shape (height, width).
        there
            Which patches a run reads, shape (side, side).
        labels
            Shape (side, side).
        """
        image = self.images[number]
        window = image.grid.window(row, column, self.side, self.side)
        pixels = image.plane.read(window)
        values = torch.from_numpy(pixels.values.astype(np.float32)).permute(2, 0, 1) * self.scale
        there = torch.from_numpy(_cut(image.there, row, column, self.side, False))
        labels = torch.from_numpy(_cut(image.labels, row, column, self.side, NONE))
        return values, torch.from_numpy(pixels.valid), there, labels

    def batch(
        self,
        numbers: NDArray[np.int64],
        random: np.random.Generator | None = None,
        augmentation: Augmentation | None = None,
    ) -> Batch:
        """Return squares as `PatchNamer` takes them, and the classes of their patches.

        With a `random`, each is moved and changed at random.

        Returns
        -------
        patches
            Normalised, NaN for those that are not read, shape (b, side, side, P, P, band).
        labels
            Shape (b * side * side,).
        """
        inputs, targets = [], []
        for number in numbers:
            place = self.places[number]
            read = self.read(*(place if random is None else self._moved(place, random)))
            if random is not None and augmentation is not None:
                read = changed(read, augmentation, random)
            pixels, valid, there, labels = read
            mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
            normalised = ((pixels - mean) / std) * valid
            if random is not None and augmentation is not None and augmentation.band_dropout:
                generator = _generator(random)
                normalised = with_bands_dropped(
                    normalised[None], augmentation.band_dropout, generator
                )[0]
            grid = self.images[place[0]].grid
            patches = cut(normalised, grid.patch, grid.stride)
            there = there & (
                cut(valid[None].float(), grid.patch, grid.stride).mean((2, 3, 4)) >= 0.5
            )
            patches[~there] = torch.nan
            inputs.append(patches)
            targets.append(labels.where(there, NONE).flatten())
        return torch.stack(inputs), torch.cat(targets)

    def _moved(
        self, place: tuple[int, int, int], random: np.random.Generator
    ) -> tuple[int, int, int]:
        """Move a square by up to half its side, unless no class would remain."""
        number, row, column = place
        labels = self.images[number].labels
        y, x = random.integers(-(self.side // 2), self.side // 2 + 1, 2)
        row_moved, column_moved = (
            int(np.clip(first + step, 0, max(0, extent - self.side)))
            for first, step, extent in zip((row, column), (y, x), labels.shape, strict=True)
        )
        inside = _cut(labels, row_moved, column_moved, self.side, NONE)
        return (number, row_moved, column_moved) if (inside != NONE).any() else place


def changed(
    read: tuple[Tensor, Tensor, Tensor, Tensor],
    augmentation: Augmentation,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn a square with all that is known of it, and change its stain or haze."""
    pixels, *others = read
    if augmentation.stain:
        pixels = restained(pixels[None], augmentation.stain, _generator(random))[0]
    if augmentation.haze:
        pixels = cleared(pixels[None], augmentation.haze, _generator(random))[0]
    turned = [pixels, *others]
    if augmentation.turns:
        quarters, is_mirrored = int(random.integers(4)), random.random() < 0.5
        turned = [each.rot90(quarters, (-2, -1)) for each in turned]
        turned = [each.flip(-1) if is_mirrored else each for each in turned]
    pixels, valid, there, labels = turned
    return pixels, valid, there, labels


def cut(pixels: Tensor, patch: int, stride: int) -> Tensor:
    """Cut an image (band, height, width) in patches, shape (rows, columns, P, P, band)."""
    return pixels.unfold(1, patch, stride).unfold(2, patch, stride).permute(1, 2, 3, 4, 0).clone()


def _cut(layout: NDArray[Any], row: int, column: int, side: int, fill: Any) -> NDArray[Any]:
    part = layout[row : row + side, column : column + side]
    whole = np.full((side, side), fill, layout.dtype)
    whole[: part.shape[0], : part.shape[1]] = part
    return whole


def _generator(random: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(random.integers(2**31)))


@dataclass(frozen=True)
class PlainWindows:
    """All squares of a set in their order, unchanged."""

    windows: Windows
    batch: int

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.windows.places), self.batch):
            stop = min(start + self.batch, len(self.windows.places))
            yield self.windows.batch(np.arange(start, stop))


class PatchNamer(nn.Module):
    """An encoder whose classifier is asked about every patch that there is, for training."""

    def __init__(self, encoder: VisionMamba) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits, shape (b * rows * columns, K); 0 for patches that are not there.

        Parameters
        ----------
        patches
            Normalised, NaN for those that are not there, shape (b, rows, columns, P, P, band).
        """
        rows, columns = patches.shape[1:3]
        there = patches[..., 0, 0, 0].isfinite().flatten(1)
        tokens = self.encoder.embed(patches.nan_to_num()).flatten(1, 2).float()
        index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        position = self.encoder.position_for(rows, columns)
        features = torch.zeros_like(tokens)
        # Squares that are there as a whole are mixed together, the others each by themselves.
        is_whole = there.all(1)
        parts = [is_whole.nonzero()[:, 0]] * bool(is_whole.any())
        parts += list((there.any(1) & ~is_whole).nonzero())
        for part in parts:
            kept = there[part[0]]
            mixed = self.encoder.mix(
                tokens[part][:, kept],
                None if position is None else position[kept],
                index=index[kept.cpu()],
                grid=(rows, columns),
            )
            features[part[:, None], kept.nonzero()[:, 0]] = mixed.tokens.float()
        logits: Tensor = self.encoder.head(features.flatten(0, 1))
        return logits


def naming_task(
    train: Windows,
    validation: Windows,
    classes: int,
    augmentation: Augmentation,
    phase: Phase,
    seed: int,
) -> Task:
    """Return the task of naming the patches that have a class."""
    counts = counted([image.labels for image in train.images], classes)
    return Task(
        training=partial(
            DrawnBatches,
            partial(train.batch, augmentation=augmentation),
            len(train.places),
            phase.batch,
            seed,
        ),
        validation=PlainWindows(validation, phase.batch),
        loss=cross_entropy(inverse(counts) if phase.class_weights else None, phase.smoothing),
        metrics=index_accuracies(classes),
        monitor="balanced_accuracy" if phase.class_weights else "accuracy",
    )


def inverse(counts: NDArray[np.int64]) -> Tensor:
    """Return the weights with which classes of unlike size weigh the same, shape (K,)."""
    return torch.from_numpy((counts.mean() / counts).astype(np.float32))


def cross_entropy(weights: Tensor | None, smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross entropy of logits (n, K) and classes (n,), those without one left out."""

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        if not (classes != NONE).any():
            return logits.sum() * 0
        weight = None if weights is None else weights.to(logits.device)
        return nn.functional.cross_entropy(
            logits.float(), classes, weight, ignore_index=NONE, label_smoothing=smoothing
        )

    return loss


def index_accuracies(classes: int) -> MetricCollection:
    """Return what is measured in validation, of logits and classes."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=NONE),
            "balanced_accuracy": MulticlassAccuracy(classes, average="macro", ignore_index=NONE),
        }
    )
