"""Real stores of small images, each run once."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import tifffile
import torch

from gigavim.checkpoint import load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.dense import Decoder, DecoderConfig
from gigavim.nuclei import OUTPUTS, NucleiConfig
from gigavim.pipelines.report import Summary
from gigavim.pipelines.run import run_image
from images import write_classifier, write_model, write_scene, write_slide

CPU = Resources(device="cpu", readers=1)


@functools.cache
def classified_scene(folder: Path) -> Summary:
    """Map land cover by a model that guesses, but is sure of what it guesses."""
    scene = write_scene(folder / "meadow.tif")
    config = RunConfig(model=str(write_classifier(folder / "land.safetensors")))
    return run_image(str(scene), folder / "meadow.gigavim.zarr", config, CPU)


@functools.cache
def clustered_slide(folder: Path) -> Summary:
    """Group the patches of a slide of which a part cannot be read."""
    slide = write_slide(folder / "broken.svs", break_tile=14)
    config = RunConfig(model=str(write_model(folder / "rgb.safetensors")), clusters=3)
    return run_image(str(slide), folder / "broken.gigavim.zarr", config, CPU)


@functools.cache
def slide_with_nuclei(folder: Path) -> Summary:
    """Take dark discs for nuclei; those on the right are less dark, and less probable."""
    y, x = np.mgrid[:640, :800] + 0.5
    image = np.full((640, 800, 3), (225, 180, 210), np.uint8)
    for number in range(12):
        cx, cy = 100 + 200 * (number % 4), 100 + 200 * (number // 4)
        shade = (40, 20, 60) if cx < 400 else (90, 85, 95)
        image[(x - cx) ** 2 + (y - cy) ** 2 < (12 + number) ** 2] = shade
    slide = folder / "discs.svs"
    tifffile.imwrite(
        slide, image, photometric="rgb", tile=(256, 256), compression="deflate", metadata=None,
        description="Aperio Image Library\n800x640|AppMag = 40|MPP = 0.25",
    )  # fmt: skip
    config = RunConfig(model=str(write_nuclei_model(folder / "dark.safetensors")), read_all=True)
    return run_image(str(slide), folder / "discs.gigavim.zarr", config, CPU)


def write_nuclei_model(path: Path) -> Path:
    """Write a model whose nuclei are what is dark: its decoder passes one number through."""
    plain = load_model(write_model(path.with_name("plain.safetensors"), patch=8, spacing=0.5))
    config = DecoderConfig(OUTPUTS, (2, 2, 2))
    decoder = Decoder(plain.encoder.config, config).eval()
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
    finest_skip, finest_up = decoder.skips[0], decoder.ups[-1]
    with torch.no_grad():
        finest_skip[0].weight[0, :, 1, 1] = -1 / 3  # dark is positive
        finest_skip[3].weight[0, 0, 1, 1] = 1
        finest_up[0].weight[0, 2, 1, 1] = 1  # after the two channels from below
        finest_up[3].weight[0, 0, 1, 1] = 1
        decoder.out.weight[:, 0] = 20
        decoder.out.bias[:] = -10
    spec = dataclasses.replace(plain.spec, decoder=config, nuclei=NucleiConfig())
    save_model(path, plain.encoder, spec, decoder=decoder)
    return path
