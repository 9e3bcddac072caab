"""Trainings that are killed, and go on to the same bytes; that of tiles is in test_loop.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from torch import Tensor

from gigavim.pipelines import unlabelled
from gigavim.pipelines.train import loop
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.commands import train
from gigavim.pipelines.unlabelled import pretrain_on
from images import tissue, write_model, write_slide, write_slides
from tile_files import write_folder

PHASE = "[[phases]]\nepochs = 2\nbatch = 2\nlearning_rate = 1e-2\n"
MODEL = "[model]\nwidth = 16\ndepth = 1\nstate = 4\n"


def annotated(folder: Path) -> Callable[[Path], object]:
    write_slides(folder / "slides")
    project = folder / "project.toml"
    project.write_text(f'data = "slides/slides.csv"\nwindow = 8\n{MODEL}{PHASE}')
    return lambda output: train(project, output, device="cpu")


def whole_images(folder: Path) -> Callable[[Path], object]:
    lines = ["file,label"]
    for number in range(6):
        write_slide(folder / f"{number}.tif", tissue(256, 256, number))
        lines.append(f"{number}.tif,{'odd' if number % 2 else 'even'}")
    (folder / "slides.csv").write_text("\n".join(lines))
    start = write_model(folder / "encoder.safetensors")
    project = folder / "project.toml"
    project.write_text(f'data = "slides.csv"\ntask = "bags"\n{PHASE}')
    return lambda output: train(project, output, start=start, device="cpu")


def without_labels(folder: Path) -> Callable[[Path], object]:
    tiles = write_folder(folder / "tiles")
    project = folder / "project.toml"
    project.write_text(f"window = 2\n{MODEL}{PHASE}")
    return lambda output: pretrain_on([tiles], output, project=project, device="cpu")


@pytest.mark.parametrize("kind", [annotated, whole_images, without_labels])
def test_a_training_that_was_killed_and_continued_writes_the_same_bytes(
    kind: Callable[[Path], Callable[[Path], object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", timedelta(0))
    monkeypatch.setattr(unlabelled, "EPOCH", 2)
    step = loop.Training.training_step
    taken = killed_at = 0

    def counted(self: loop.Training, batch: Batch, number: int) -> Tensor:
        nonlocal taken
        taken += 1
        if taken == killed_at:
            raise ConnectionAbortedError
        return step(self, batch, number)

    monkeypatch.setattr(loop.Training, "training_step", counted)
    learn = kind(tmp_path)
    whole, halves = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors"
    learn(whole)
    killed_at, taken = taken, 0
    with pytest.raises(ConnectionAbortedError):
        learn(halves)
    killed_at = taken = 0
    learn(halves)

    assert taken == 1  # the rest was taken up
    assert halves.read_bytes() == whole.read_bytes()
