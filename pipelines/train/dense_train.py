"""A model that finds nuclei: trained, measured, written."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gigavim.checkpoint import Model, ModelSpec, load_model, save_model
from gigavim.config import Precision
from gigavim.errors import GigavimError
from gigavim.nuclei import NucleiConfig, instances
from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.classifier import claim
from gigavim.pipelines.train.dense import (
    CROP,
    CropBatches,
    DenseModel,
    LabelledNuclei,
    Normalisation,
    new_model,
    nuclei_task,
    read_nuclei,
)
from gigavim.pipelines.train.dense_metrics import aggregated_jaccard, bootstrap, dice
from gigavim.pipelines.train.figures import Figure, Figures
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import Project, architecture, as_text
from gigavim.stain import stain_shares

logger = logging.getLogger(__name__)

CHOICES = (
    (0.35, 0.4, 0.45, 0.5, 0.55, 0.6),
    (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
    (10, 20, 40),
)
"""Of `NucleiConfig`, among which the validation images decide."""
RARE = 1.0
"""Per cent of training crops that count as unusual, at either end."""


def train_nuclei(
    project: Project,
    data: Path,
    output: Path,
    *,
    device: str = "auto",
    precision: Precision = "bfloat16",
    tensorboard: bool = False,
    progress: bool = False,
    force: bool = False,
) -> Figures:
    """Train on a folder for `read_nuclei` and write the model; `train` has the parameters.

    Returns
    -------
    figures
        On the test images, of the model as it was written.

    Raises
    ------
    GigavimError
        If the data is at fault, or the loss is not finite.
    """
    sets = read_nuclei(data)
    split = hashlib.sha256((data / "index.csv").read_bytes()).hexdigest()
    folder = output.with_suffix(".train")
    claim(folder, f"{as_text(project)}\nsplit {split}\n", force=force)
    (phase,) = project.phases
    model = new_model(architecture(project, CROP, 3, 0), project.seed)
    augmentation = project.augmentation_in(phase)
    task = nuclei_task(sets, augmentation, phase, project.seed)
    fit(
        model, task, phase, folder,
        device=device, precision=precision, tensorboard=tensorboard, progress=progress,
    )  # fmt: skip
    normalised = Normalisation.of(sets["train"])
    spec = ModelSpec(
        model.encoder.config,
        mean=normalised.mean,
        std=normalised.std,
        spacing=project.spacing,
        unit=project.unit,
        tile=CROP,
        decoder=model.decoder.config,
        nuclei=tuned(predicted(model, sets["val"], normalised), sets["val"].labels),
        stain=usual_stain(sets["train"], augmentation, project.seed),
        training_data=project.training_data,
        licence=project.licence,
        split=split,
    )
    save_model(output, model.encoder, spec, torch.float16, decoder=model.decoder)
    # What is written is what is measured: float16 weights.
    figures = test_figures(load_model(output), sets["test"])
    spec = dataclasses.replace(spec, metrics=figures.as_metrics("test"))
    save_model(output, model.encoder, spec, torch.float16, decoder=model.decoder)
    return figures


def test_figures(loaded: Model, test: LabelledNuclei) -> Figures:
    """Measure a model on images, each a sequence of its own.

    Raises
    ------
    GigavimError
        If it does not find nuclei.
    """
    spec = loaded.spec
    if loaded.decoder is None or spec.decoder is None or spec.nuclei is None:
        raise GigavimError(f"{loaded.path} was not trained to find nuclei")
    model = DenseModel(spec.architecture, spec.decoder).eval()
    model.encoder, model.decoder = loaded.encoder, loaded.decoder
    maps = predicted(model, test, Normalisation(spec.mean, spec.std))
    by_name = nuclei_figures(maps, test.labels, spec.nuclei)
    return Figures((), len(test.names), len(test.names), by_name, ())


@torch.inference_mode()
def predicted(
    model: nn.Module, data: LabelledNuclei, normalised: Normalisation
) -> NDArray[np.float32]:
    """Return probability and depth of every pixel, shape (n, 2, h, w)."""
    model.eval()
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2)
    maps = [model(normalised(image[None] / 255)).sigmoid().numpy() for image in images]
    return np.concatenate(maps)


def nuclei_figures(
    maps: NDArray[np.float32], labels: NDArray[np.int32], config: NucleiConfig
) -> dict[str, Figure]:
    """Return Dice and AJI, means over images."""
    found = [instances(nucleus, depth, config) for nucleus, depth in maps]
    figures = {"dice": dice, "aji": aggregated_jaccard}
    return {
        name: bootstrap(
            np.array([each(truth, mine) for truth, mine in zip(labels, found, strict=True)])
        )
        for name, each in figures.items()
    }


def tuned(maps: NDArray[np.float32], labels: NDArray[np.int32]) -> NucleiConfig:
    """Return the thresholds with which the AJI is best."""
    configs = [NucleiConfig(*choice) for choice in itertools.product(*CHOICES)]
    scores = [nuclei_figures(maps, labels, config)["aji"].value for config in configs]
    best = int(np.argmax(scores))
    logger.info("validation AJI %.4f with %s", scores[best], configs[best])
    return configs[best]


def usual_stain(
    data: LabelledNuclei, augmentation: Augmentation, seed: int
) -> tuple[tuple[float, float], ...]:
    """Return between what the share of each band in the stain lies, in what is trained on."""
    plain = Normalisation((0.0,) * 3, (1.0,) * 3)
    batches = CropBatches(data, plain, augmentation, 1, seed)
    shares = np.array([stain_shares(images[0].permute(1, 2, 0).numpy()) for images, _ in batches])
    low, high = np.percentile(shares, [RARE, 100 - RARE], axis=0)
    return tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))
