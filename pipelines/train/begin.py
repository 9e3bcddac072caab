"""What training begins with: a description of the model, and its first weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gigavim.checkpoint import Model, ModelSpec
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.head import ClassTable, palette
from gigavim.pipelines.train.project import Project, architecture
from gigavim.pipelines.train.split import split_hash
from gigavim.pipelines.train.tiles import TileSet
from gigavim.position import positions_on

AT_ONCE = 1024
"""Tiles whose values are summed together."""


def first_spec(
    project: Project, tiles: TileSet, classes: tuple[str, ...], begun: Model | None
) -> ModelSpec:
    """Describe the model that a project trains on tiles.

    Raises
    ------
    GigavimError
        If tiles, project and the model that is begun with do not fit.
    """
    height, width, count = tiles.pixels.shape[1:]
    if height != width:
        raise GigavimError(f"tiles are {height} x {width} pixels; they must be square")
    bands = project.bands or default_bands(count)
    if begun is None:
        config = architecture(project, height, count, len(classes))
    else:
        config = dataclasses.replace(begun.spec.architecture, classes=len(classes))
        bands = begun.spec.bands
    if len(bands) != count:
        raise GigavimError(f"tiles have {count} bands, and {len(bands)} are named or trained on")
    scale = 1 / 255 if tiles.pixels.dtype == np.uint8 else 1.0
    if begun is not None and begun.spec.normalisation == "fixed":
        scale, mean, std = begun.spec.scale, begun.spec.mean, begun.spec.std
    else:
        mean, std = band_statistics(tiles, scale)
    return ModelSpec(
        config,
        scale=scale,
        white=project.white or (begun.spec.white if begun else None),
        mean=mean,
        std=std,
        bands=bands,
        spacing=project.spacing or (begun.spec.spacing if begun else None),
        unit=project.unit or (begun.spec.unit if begun else None),
        tile=height,
        mode=project.mode,
        classes=ClassTable(classes, class_colours(project, classes)),
        training_data=project.training_data,
        licence=project.licence,
        split=split_hash(tiles),
    )


def default_bands(count: int) -> tuple[str, ...]:
    """Name bands that have no names."""
    if count == 3:
        return "red", "green", "blue"
    return tuple(f"band {number}" for number in range(1, count + 1))


def band_statistics(tiles: TileSet, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band over the training split."""
    rows = tiles.rows("train")
    total = np.zeros(tiles.pixels.shape[-1])
    squares = total.copy()
    for start in range(0, len(rows), AT_ONCE):
        values = tiles.pixels[rows[start : start + AT_ONCE]].astype(np.float64) * scale
        total += values.sum((0, 1, 2))
        squares += (values**2).sum((0, 1, 2))
    count = len(rows) * tiles.pixels.shape[1] * tiles.pixels.shape[2]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if not np.isfinite(mean).all() or not (std > 0).all():
        raise GigavimError(
            f"a band of the training tiles is constant or not finite (means {mean}, deviations "
            f"{std}); leave it out"
        )
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def class_colours(project: Project, classes: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Return the project's colours, or distinct ones."""
    unknown = sorted(set(project.colours) - set(classes))
    if unknown:
        raise GigavimError(
            f"colours name {unknown[0]!r}, which is no class of {', '.join(classes)}"
        )
    colours = [(int(r), int(g), int(b)) for r, g, b in palette(len(classes))]
    for name, text in project.colours.items():
        try:
            r, g, b = bytes.fromhex(text.removeprefix("#"))
        except ValueError as error:
            raise GigavimError(f"colour {text!r} of {name!r} is not written as #rrggbb") from error
        colours[classes.index(name)] = (r, g, b)
    return tuple(colours)


def first_encoder(spec: ModelSpec, begun: Model | None, seed: int) -> VisionMamba:
    """Return an encoder with random weights, or those of the model that is begun with.

    Of other classes than that model's the classifier is new.
    """
    torch.manual_seed(seed)
    encoder = VisionMamba(spec.architecture)
    if begun is not None:
        weights = begun.encoder.state_dict()
        if (
            begun.spec.classes is None
            or spec.classes is None
            or (begun.spec.classes.names != spec.classes.names)
        ):
            weights = {name: w for name, w in weights.items() if not name.startswith("head.")}
        encoder.load_state_dict(weights, strict=False)
    return encoder


@torch.no_grad()
def with_stride(encoder: VisionMamba, stride: int) -> VisionMamba:
    """Return the encoder with another step from patch to patch: longer or shorter sequences.

    The table of learned positions is stretched over the new grid of patches, the rows of class
    tokens are kept: what Vim calls long-sequence fine-tuning begins with this.
    """
    old = encoder.config
    new = dataclasses.replace(old, stride=stride)
    changed = VisionMamba(new)
    weights = dict(encoder.state_dict())
    if "pos_embed" in weights:
        table = weights["pos_embed"][0]
        stretched = torch.empty(new.side**2 + len(new.class_index(0)), new.width)
        is_patch, was_patch = (_rows_of_patches(config) for config in (new, old))
        stretched[is_patch] = positions_on(table[was_patch], new.side, new.side)
        stretched[~is_patch] = table[~was_patch]
        weights["pos_embed"] = stretched[None]
    changed.load_state_dict(weights)
    return changed


def _rows_of_patches(config: VisionMambaConfig) -> Tensor:
    """Return which rows of the table are those of patches, not of class tokens."""
    rows = torch.ones(config.side**2 + len(config.class_index(0)), dtype=torch.bool)
    rows[list(config.class_index(config.side**2))] = False
    return rows
