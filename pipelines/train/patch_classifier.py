"""A classifier of patches, from annotated images: trained, measured, written."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gigavim.checkpoint import Model, ModelSpec, load_model, save_model
from gigavim.config import Precision
from gigavim.errors import GigavimError
from gigavim.head import ClassTable
from gigavim.pipelines.train.annotated import (
    AnnotatedImage,
    Classes,
    PatchNamer,
    Windows,
    check_classes,
    naming_task,
    read_annotated,
)
from gigavim.pipelines.train.begin import class_colours, first_encoder, with_stride
from gigavim.pipelines.train.classifier import SPLIT, claim
from gigavim.pipelines.train.figures import Figures, figures_of
from gigavim.pipelines.train.labels import NONE
from gigavim.pipelines.train.listing import (
    ListedImage,
    annotated_images,
    divided,
    folder_of,
    table_of,
    tested,
)
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import Project, architecture, as_text
from gigavim.pipelines.train.split import split_hash, write_split

logger = logging.getLogger(__name__)

MEASURED = 256
"""Squares whose pixels tell mean and deviation."""


def train_annotated(
    project: Project,
    output: Path,
    begun: Model | None = None,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train on annotated images and write the model; `train` has the parameters.

    Raises
    ------
    GigavimError
        If images, annotations, project and model do not fit, or the loss is not finite.
    """
    listed = divided(annotated_images(project), project.seed, by_label=False)
    spec = _described(project, listed, begun)
    config = spec.architecture
    if (config.class_token, config.pool) != ("none", "mean"):
        raise GigavimError(
            "a model that names patches has class_token = 'none' and pool = 'mean', not "
            f"{config.class_token!r} and {config.pool!r}; correct [model], or leave out --from"
        )
    images, classes = _read(project, listed, spec)
    check_classes(images, classes.names)
    spec = _with_classes(spec, project, classes, images)
    folder = output.with_suffix(".train")
    identity = f"{as_text(project)}\nsplit {spec.split}\n"
    claim(folder, identity + (f"from {begun.sha256}\n" if begun else ""), force=force)

    encoder = first_encoder(spec, begun, project.seed)
    for number, phase in enumerate(project.phases, 1):
        if phase.stride is not None:
            encoder = with_stride(encoder, phase.stride)
            spec = dataclasses.replace(spec, architecture=encoder.config)
            images, _ = _read(project, listed, spec)
        train, validation = (
            _windows(project, _of_split(images, split), spec) for split in ("train", "val")
        )
        augmentation = project.augmentation_in(phase)
        task = naming_task(train, validation, len(classes.names), augmentation, phase, project.seed)
        score = fit(
            PatchNamer(encoder), task, phase, folder / f"phase-{number}",
            device=device, precision=precision, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
        logger.info("phase %d of %d: validation %.4f", number, len(project.phases), score)

    split = "test" if any(each.tile.split == "test" for each in listed) else "val"
    save_model(output, encoder, spec, torch.float16)
    # What is written is what is measured: float16 weights.
    figures = _measure(load_model(output), _windows(project, _of_split(images, split), spec))
    metrics = figures.as_metrics(split)
    save_model(output, encoder, dataclasses.replace(spec, metrics=metrics), torch.float16)
    write_split(output.with_suffix(SPLIT), table_of(listed))
    return figures


def evaluate_annotated(model: Model, project: Project) -> tuple[str, Figures]:
    """Compare what a model says of annotated images with their annotations.

    Returns
    -------
    split
        Which images were compared, as of `tested`.
    figures

    Raises
    ------
    GigavimError
        If images, annotations and model do not fit.
    """
    split, listed = tested(annotated_images(project), model.path.with_suffix(SPLIT))
    images, classes = _read(project, listed, model.spec)
    known = model.spec.classes
    unknown = sorted(set(classes.names) - set(known.names if known else ()))
    if known is None or unknown:
        raise GigavimError(
            f"{model.path} does not know {unknown[0]!r}; it knows "
            f"{', '.join(known.names) if known else 'no classes'}"
        )
    index = np.array([*(known.names.index(name) for name in classes.names), NONE])
    images = [dataclasses.replace(image, labels=index[image.labels]) for image in images]
    return split, _measure(model, _windows(project, images, model.spec))


def _described(project: Project, listed: Sequence[ListedImage], begun: Model | None) -> ModelSpec:
    """Describe what is known of the model before the annotations are read."""
    source = listed[0].source
    names = tuple(band.name for band in source.bands)
    if begun is None:
        own = source.spacing
        config = architecture(project, 1, len(names), 0)
        side = (project.window - 1) * config.stride + config.patch
        is_known = own is not None and own.unit in ("µm", "metre")
        return ModelSpec(
            dataclasses.replace(config, image_size=side),
            scale=1 / 255 if source.dtype == np.uint8 else 1.0,
            normalisation="image",  # until they are read
            bands=names,
            wavelengths_nm=tuple(band.wavelength_nm for band in source.bands),
            spacing=project.spacing or (own.x if own is not None and is_known else None),
            unit=project.unit or (own.unit if own is not None and is_known else None),
            tile=side,
            mode="whole",
            training_data=project.training_data,
            licence=project.licence,
        )
    if len(names) != len(begun.spec.bands):
        raise GigavimError(
            f"{begun.path} takes {', '.join(begun.spec.bands)}, and {source.path} has "
            f"{', '.join(names)}; choose with bands"
        )
    return dataclasses.replace(
        begun.spec,
        spacing=project.spacing or begun.spec.spacing,
        unit=project.unit or begun.spec.unit,
        training_data=project.training_data,
        licence=project.licence,
        metrics={},
        mode="whole",
        decoder=None,
        nuclei=None,
        bag=None,
    )


def _read(
    project: Project, listed: Sequence[ListedImage], spec: ModelSpec
) -> tuple[list[AnnotatedImage], Classes]:
    return read_annotated(
        listed, folder_of(project), spec.architecture, spec.spacing, project.values
    )


def _with_classes(
    spec: ModelSpec, project: Project, classes: Classes, images: Sequence[AnnotatedImage]
) -> ModelSpec:
    """Put in what the annotations say, and how their images are normalised."""
    colours = {**classes.colours, **project.colours}
    project = dataclasses.replace(project, colours=colours)
    if spec.normalisation == "image":
        mean, std = _statistics(_windows(project, _of_split(images, "train"), spec), project.seed)
        spec = dataclasses.replace(spec, normalisation="fixed", mean=mean, std=std)
    return dataclasses.replace(
        spec,
        architecture=dataclasses.replace(spec.architecture, classes=len(classes.names)),
        classes=ClassTable(classes.names, class_colours(project, classes.names)),
        split=split_hash(table_of([image.listed for image in images])),
    )


def _windows(project: Project, images: Sequence[AnnotatedImage], spec: ModelSpec) -> Windows:
    windows = Windows.of(images, project.window, spec.scale, spec.mean, spec.std)
    if not windows.places:
        files = ", ".join(image.listed.tile.file for image in images)
        raise GigavimError(f"no patch of {files} has a class; annotate some tissue or data there")
    return windows


def _of_split(images: Sequence[AnnotatedImage], split: str) -> list[AnnotatedImage]:
    return [image for image in images if image.listed.tile.split == split]


def _statistics(windows: Windows, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band, of what is read."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(windows.places))[:MEASURED]
    plain = dataclasses.replace(windows, mean=(0.0,), std=(1.0,))
    sums = []
    for number in chosen:
        patches, _ = plain.batch(np.array([number]))
        values = patches[patches[..., 0, 0, 0].isfinite()].double().flatten(0, 2)
        sums.append(torch.stack([torch.ones_like(values), values, values**2]).sum(1))
    count, total, squares = torch.stack(sums).sum(0)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    if not mean.isfinite().all() or not (std > 0).all():
        raise GigavimError(
            f"a band of the training images is constant or not finite (means {mean.tolist()}, "
            f"deviations {std.tolist()}); leave it out with bands"
        )
    return tuple(mean.tolist()), tuple(std.tolist())


@torch.inference_mode()
def _measure(model: Model, windows: Windows) -> Figures:
    """Compare each patch that has a class; groups of images are drawn, not patches."""
    namer = PatchNamer(model.encoder)
    probs, labels, groups = [], [], []
    for number, place in enumerate(windows.places):
        patches, classes = windows.batch(np.array([number]))
        kept = classes != NONE
        probs.append(namer(patches)[kept].softmax(-1))
        labels.append(classes[kept])
        groups += [windows.images[place[0]].listed.tile.group] * int(kept.sum())
    assert model.spec.classes is not None  # it is a classifier
    figures = figures_of(torch.cat(probs), torch.cat(labels), groups, model.spec.classes.names)
    return dataclasses.replace(figures, images=len(windows.images))
