"""Tiles joined to mosaics, so that a classifier of tiles learns to name every patch of an image.

On single tiles only the mean over all patches is told what it is, and no token has ever seen the
state that another land cover left behind. In a mosaic each patch has a label of its own. From
mosaics alone a model would forget what it knows of tiles, so the two take turns. From small squares
it learns that the line above is near and a class is soon over; a scene has long lines and large
lakes, and of such squares alone a town by the sea comes to be named sea.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim.encoder import VisionMamba
from gigavim.errors import GigavimError
from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.batches import Batch, Labelled, TrainingBatches
from gigavim.pipelines.train.classification import (
    accuracies,
    class_weights,
    monitored,
    soft_cross_entropy,
)
from gigavim.pipelines.train.loop import Task
from gigavim.pipelines.train.project import Phase


class PatchClassifier(nn.Module):
    """An encoder whose classifier is asked about every patch, for training.

    Parameters
    ----------
    tile
        Side of the images, in pixels, that it is asked about as a whole.
    """

    def __init__(self, encoder: VisionMamba, tile: int) -> None:
        super().__init__()
        self.encoder, self.tile = encoder, tile

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of normalised images, shape (b, K) of tiles, otherwise (b * patches, K)."""
        if images.shape[2] == self.tile:
            of_tiles: Tensor = self.encoder(images)
            return of_tiles
        config = self.encoder.config
        patches = images.unfold(2, config.patch, config.stride)
        patches = patches.unfold(3, config.patch, config.stride).permute(0, 2, 3, 4, 5, 1)
        tokens = self.encoder.embed(patches)  # (b, row, column, D)
        rows, columns = tokens.shape[1:3]
        index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        mixed = self.encoder.mix(
            tokens.flatten(1, 2),
            self.encoder.position_for(rows, columns),
            index=index,
            grid=(rows, columns),
        )
        logits: Tensor = self.encoder.head(mixed.tokens.flatten(0, 1))
        return logits


class MosaicBatches(TrainingBatches):
    """Batches of tiles, changed as those of `TrainingBatches` and joined to mosaics.

    A mosaic is rolled by a random number of pixels, so that borders lie anywhere in a patch.
    """

    def __init__(
        self,
        data: Labelled,
        augmentation: Augmentation,
        phase: Phase,
        cut: tuple[int, int],
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(data, augmentation, phase.batch, seed, rank, ranks)
        self.side, self.every, self.cut = phase.mosaic, phase.mosaic_every, cut
        self.scenes = phase.scenes
        share = min(phase.batch, len(data.labels)) // ranks
        if share < self.side**2:
            raise GigavimError(
                f"a mosaic of {self.side} x {self.side} tiles needs as many in a batch, and there "
                f"are {share} for each process"
            )

    def _changed(self, rows: NDArray[np.int64], number: int) -> Batch:
        # What is mixed within a tile would have labels that do not say where it is.
        augmentation = replace(self.augmentation, mixed=0.0)
        generator = self._generator(number)
        whole = rows[: len(rows) // self.side**2 * self.side**2]
        down, across = self.side, self.side
        if self.scenes:
            down, across = scene_shape(self.side, generator)
            mosaics = whole.reshape(-1, self.side**2)
            orders = [scene_order(self.data.labels[each], generator) for each in mosaics]
            whole = np.take_along_axis(mosaics, np.stack(orders), 1).ravel()
        images = augmentation.change(self.data.images(whole), generator)
        targets = self.data.targets(whole)
        images, _ = augmentation.hide(self.data.normalised(images), targets, generator)
        height, width = images.shape[2:]
        classes = targets[:, :, None, None].expand(-1, -1, height, width)
        images, classes = joined(images, down, across), joined(classes, down, across)
        y, x = torch.randint(height * self.side, (2,), generator=generator).tolist()
        images, classes = (values.roll((y, x), (2, 3)) for values in (images, classes))
        # By area: a patch on a border is as much of one class as of the other.
        of_patches = nn.functional.avg_pool2d(classes, *self.cut)
        return images, of_patches.permute(0, 2, 3, 1).flatten(0, 2)


class MosaicAndTileBatches(MosaicBatches):
    """Batches of mosaics and of single tiles, in turns: `Phase.mosaic_every`."""

    def _changed(self, rows: NDArray[np.int64], number: int) -> Batch:
        if number % self.every:
            return TrainingBatches._changed(self, rows, number)
        return super()._changed(rows, number)


@dataclass(frozen=True)
class PlainMosaics:
    """The same mosaics of unchanged tiles each time."""

    data: Labelled
    phase: Phase
    cut: tuple[int, int]

    def __iter__(self) -> Iterator[Batch]:
        unchanged = Augmentation(turns=False, zoom=1)
        return iter(MosaicBatches(self.data, unchanged, self.phase, self.cut, seed=0))


def mosaic_task(
    train: Labelled,
    validation: Labelled,
    augmentation: Augmentation,
    phase: Phase,
    cut: tuple[int, int],
    seed: int,
) -> Task:
    """Return the task of naming every patch of mosaics, and tiles as before.

    Parameters
    ----------
    phase
        `Phase.mosaic` tiles to a side.
    cut
        Side of a patch, and from one to the next, in pixels.
    """
    return Task(
        training=partial(MosaicAndTileBatches, train, augmentation, phase, cut, seed),
        validation=PlainMosaics(validation, phase, cut),
        loss=soft_cross_entropy(class_weights(train, phase), phase.smoothing),
        metrics=accuracies(train.classes),
        monitor=monitored(phase),
    )


def scene_shape(side: int, generator: torch.Generator) -> tuple[int, int]:
    """Return at random how many tiles down and across `side` ** 2 of them lie, at least as wide."""
    shapes = [(down, side**2 // down) for down in range(2, side + 1) if side**2 % down == 0]
    return shapes[int(torch.randint(len(shapes), (), generator=generator))]


def scene_order(labels: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
    """Return an order of tiles by class, in random order of these, but a random share anywhere."""
    classes = torch.randperm(int(labels.max()) + 1, generator=generator)
    order = classes[torch.from_numpy(labels)].argsort(stable=True)
    apart = torch.rand(len(order), generator=generator) < torch.rand((), generator=generator)
    some = order[apart]
    order[apart] = some[torch.randperm(len(some), generator=generator)]
    return order.numpy()


def joined(images: Tensor, down: int, across: int) -> Tensor:
    """Join images, shape (b * down * across, band, h, w), to mosaics of so many tiles."""
    _, bands, height, width = images.shape
    mosaics = images.reshape(-1, down, across, bands, height, width).permute(0, 3, 1, 4, 2, 5)
    return mosaics.reshape(-1, bands, down * height, across * width)
