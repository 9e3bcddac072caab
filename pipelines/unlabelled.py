"""``gigavim pretrain``: an encoder from images without labels."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.checkpoint import ModelSpec, save_model
from gigavim.config import Precision
from gigavim.errors import GigavimError
from gigavim.foreground import foreground
from gigavim.geometry import Grid, Window
from gigavim.pipelines.pretrain import Crop, pretrain
from gigavim.pipelines.train.augment import restained
from gigavim.pipelines.train.classifier import SPLIT, claim
from gigavim.pipelines.train.plain import HELD_OUT, plain_images
from gigavim.pipelines.train.project import Project, architecture, as_text, read_project
from gigavim.pipelines.train.split import split_hash, split_table, write_split
from gigavim.pipelines.views import pretrain_views
from gigavim.sources import Plane, Source
from gigavim.sources.dates import date_of

EPOCH = 100
"""Batches from one validation to the next."""
MEASURED = 100
"""Crops whose pixels tell mean and deviation."""
SMALL_IMAGE = 2048
"""Images of at most so many pixels to a side are read everywhere, not on tissue or data alone."""


@dataclass(frozen=True)
class Crops:
    """Squares of the foreground of images, read when they are drawn."""

    sources: tuple[Source, ...]
    places: tuple[NDArray[np.float64], ...]
    """Level-0 y and x of the centres of foreground squares of each source, shape (n, 2)."""
    size: int
    """Side of a crop, in pixels."""
    spacing: float | None
    zoom: float
    """Largest factor by which the spacing is more or less."""
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int
    stain: float = 0.0
    """Largest change of each stain, as in `Augmentation`."""
    weight: float = 1.0
    days: tuple[float, ...] = ()
    """Of the year on which each source was taken, NaN where that is not known; or nothing."""

    def crop(self, random: np.random.Generator) -> Crop:
        """Read a square about a random place, at a spacing near the model's."""
        number, place = self._place(random)
        there = np.ones(len(self.mean), np.bool_)
        day = self.days[number] if self.days else math.nan
        return Crop(self._about(number, place, random), there, day)

    def views(self, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read two squares about one random place."""
        number, place = self._place(random)
        return self._about(number, place, random), self._about(number, place, random)

    def _place(self, random: np.random.Generator) -> tuple[int, NDArray[np.float64]]:
        areas = np.array([self.area(number) for number in range(len(self.sources))])
        number = int(random.choice(len(areas), p=areas / areas.sum()))
        return number, self.places[number][random.integers(len(self.places[number]))]

    def _about(
        self, number: int, place: NDArray[np.float64], random: np.random.Generator
    ) -> NDArray[np.float32]:
        """Read a square that holds a place, or is as near to it as the image allows."""
        factor = math.exp(random.uniform(-1, 1) * math.log(self.zoom))
        plane = plane_at(self.sources[number], self.spacing, factor)
        ratios, extents = (plane.ratio_y, plane.ratio_x), (plane.height, plane.width)
        y, x = (
            int(np.clip(centre / ratio - self.size * random.random(), 0, max(0, all_ - self.size)))
            for centre, ratio, all_ in zip(place, ratios, extents, strict=True)
        )
        pixels = plane.read(Window(y, x, self.size, self.size))
        values = np.asarray(pixels.values * np.float32(self.scale), np.float32)
        if self.stain:
            generator = torch.Generator().manual_seed(int(random.integers(2**31)))
            image = torch.from_numpy(values).permute(2, 0, 1)[None]
            values = restained(image, self.stain, generator)[0].permute(1, 2, 0).numpy()
        mean, std = (np.asarray(each, np.float32) for each in (self.mean, self.std))
        return np.where(pixels.valid[..., None], (values - mean) / std, np.float32(np.nan))

    def area(self, number: int) -> float:
        """Return the foreground of a source in squares, those at its rim by what lies inside."""
        plane = plane_at(self.sources[number], self.spacing)
        height, width = (extent / self.size for extent in (plane.height, plane.width))
        inside = height * width / (math.ceil(height) * math.ceil(width))
        return len(self.places[number]) * inside


def plane_at(source: Source, spacing: float | None, factor: float = 1.0) -> Plane:
    """Look at a source at a spacing, or its own, times a factor; no finer than it is."""
    own = source.spacing
    if own is None:
        ratio = max(1.0, factor)
        return Plane(source, 0, ratio, ratio)
    return Plane.at(source, max((spacing or max(own.y, own.x)) * factor, own.y, own.x))


def pretrain_on(
    paths: Sequence[str | Path],
    output: Path,
    *,
    project: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "bfloat16",
    progress: bool = False,
    force: bool = False,
) -> dict[str, float]:
    """Train an encoder without labels and write it; what was stopped goes on by the same call.

    Parameters
    ----------
    paths
        Slides, scenes, and folders of them or of tiles; see `plain_images`.
    output
        The model file. Beside it go the split, ``NAME.split.csv``, and the folder ``NAME.train``.
    project
        A TOML file with what is other than the defaults, as for `train`, or the name of a shipped
        one.
    epochs, seed
        In place of the project's.
    force
        Train anew, whatever is there.

    Returns
    -------
    metrics
        As of `pretrain`, or `pretrain_views`.

    Raises
    ------
    GigavimError
        If no image can be read, images and project do not fit, or the loss is not finite.
    """
    wanted = _project(project, epochs, seed)
    images, split = plain_images(paths, wanted)
    sources = [image.source for image in images]
    first = sources[0]
    bands = tuple(band.name for band in first.bands)
    config = architecture(wanted, 1, len(bands), 0)
    size = wanted.window * config.patch
    config = dataclasses.replace(config, image_size=size, stride=config.patch)
    own = first.spacing
    is_known = own is not None and own.unit in ("µm", "metre")
    spacing = wanted.spacing or (max(own.y, own.x) if own is not None and is_known else None)

    folder = output.with_suffix(".train")
    read = "\n".join(f"{each.tile.file} {Path(each.source.path).stat().st_size}" for each in images)
    digest = hashlib.sha256(f"{split_table(split)}{read}".encode()).hexdigest()
    claim(folder, f"{as_text(wanted)}\nimages {digest}\n", force=force)

    (phase,) = wanted.phases
    scale = 1 / 255 if first.dtype == np.uint8 else 1.0
    plain = Crops(
        tuple(sources), tuple(_places(source, spacing, size) for source in sources),
        size, spacing, wanted.augmentation.zoom, scale,
        (0.0,) * len(bands), (1.0,) * len(bands), phase.batch,
        days=_days(sources) if config.season else (),
    )  # fmt: skip
    train, held_out = _divided(plain, [image.tile.split == "val" for image in images])
    mean, std = _statistics(train, wanted.seed)
    train, held_out = (dataclasses.replace(each, mean=mean, std=std) for each in (train, held_out))
    train = dataclasses.replace(train, stain=wanted.augmentation.stain)
    learn = (
        partial(pretrain_views, train, held_out)
        if wanted.objective == "views"
        else partial(
            pretrain, [train], [held_out], band_dropout=wanted.augmentation.band_dropout > 0
        )
    )
    encoder, metrics = learn(
        config, phase, folder / "phase-1",
        steps=EPOCH, seed=wanted.seed, device=device, precision=precision, progress=progress,
    )  # fmt: skip
    spec = ModelSpec(
        config,
        scale=scale,
        mean=mean,
        std=std,
        bands=bands,
        wavelengths_nm=tuple(band.wavelength_nm for band in first.bands),
        partial_bands=wanted.augmentation.band_dropout > 0,
        spacing=spacing,
        unit=wanted.unit or (own.unit if own is not None and is_known else None),
        tile=size,
        training_data=wanted.training_data,
        licence=wanted.licence,
        metrics=metrics,
        split=split_hash(split),
    )
    save_model(output, encoder, spec, torch.float16)
    write_split(output.with_suffix(SPLIT), split)
    return metrics


def _project(path: str | Path | None, epochs: int | None, seed: int | None) -> Project:
    project = Project() if path is None else read_project(path)
    if len(project.phases) > 1 or project.phases[0].stride is not None:
        raise GigavimError(
            f"{path}: an encoder is pretrained in one phase, of patches side by side"
        )
    if project.objective == "views" and project.augmentation.band_dropout:
        raise GigavimError(f"{path}: bands are dropped where patches are hidden, not of views")
    if project.objective == "views" and project.model.get("season"):
        raise GigavimError(f"{path}: seasons are learned where patches are hidden, not of views")
    (phase,) = project.phases
    phase = dataclasses.replace(phase, epochs=epochs or phase.epochs)
    seed = project.seed if seed is None else seed
    return dataclasses.replace(project, phases=(phase,), seed=seed)


def _days(sources: Sequence[Source]) -> tuple[float, ...]:
    dates = [date_of(source) for source in sources]
    if not any(dates):
        raise GigavimError(
            f"{sources[0].path} and the others do not say when they were taken; "
            "name them by their dates, as in 2024-05-01.tif, or leave season out"
        )
    return tuple(math.nan if day is None else float(day.timetuple().tm_yday) for day in dates)


def _places(source: Source, spacing: float | None, size: int) -> NDArray[np.float64]:
    plane, finest = plane_at(source, spacing), source.levels[0]
    grid = Grid.over(
        finest.height, finest.width, patch=size, ratio_y=plane.ratio_y, ratio_x=plane.ratio_x
    )
    is_small = max(finest.height, finest.width) <= SMALL_IMAGE
    found = foreground(source, grid, read_all=is_small)
    centres = (np.argwhere(found) + 0.5) * (grid.cell_y, grid.cell_x)
    return np.asarray(centres, np.float64)


def _divided(crops: Crops, held_out: Sequence[bool]) -> tuple[Crops, Crops]:
    """Keep the images that are held out for validation, or of none the lowest squares of each."""
    if any(held_out):
        cuts = [
            0 if is_held_out else len(places)
            for places, is_held_out in zip(crops.places, held_out, strict=True)
        ]
    else:
        cuts = [len(places) - math.ceil(len(places) / HELD_OUT) for places in crops.places]
    return (
        _with_places(crops, [p[:cut] for p, cut in zip(crops.places, cuts, strict=True)]),
        _with_places(crops, [p[cut:] for p, cut in zip(crops.places, cuts, strict=True)]),
    )


def _with_places(crops: Crops, places: Sequence[NDArray[np.float64]]) -> Crops:
    if not sum(map(len, places)):
        raise GigavimError(
            f"there is too little to learn from: fewer than two squares of {crops.size} pixels "
            "with tissue or data; add images, or make window smaller"
        )
    return dataclasses.replace(crops, places=tuple(places))


def _statistics(crops: Crops, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band."""
    random = np.random.default_rng(seed)
    drawn = np.stack([crops.crop(random)[0] for _ in range(MEASURED)]).astype(np.float64)
    mean, std = np.nanmean(drawn, (0, 1, 2)), np.nanstd(drawn, (0, 1, 2))
    if not np.isfinite(mean).all() or not (std > 0).all():
        raise GigavimError(
            f"a band of the images is constant or not finite (means {mean}, deviations {std}); "
            "leave it out with bands"
        )
    return tuple(map(float, mean)), tuple(map(float, std))
