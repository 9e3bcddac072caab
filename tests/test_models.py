from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gigavim import models
from gigavim.encoder import VisionMamba
from gigavim.errors import ModelError

# Counted from the published checkpoints; the rotary one lacks a class token and its position.
PARAMETERS: dict[Callable[..., VisionMamba], int] = {
    models.vim_tiny: 7_148_008,
    models.vim_tiny_plus: 7_250_344,
    models.vim_small: 25_796_584,
    models.vim_small_plus: 26_001_256,
    models.vim_base: 97_598_440,
    models.vim_tiny_rope: 7_148_008 - 2 * 192,
}


@pytest.mark.parametrize("constructor", PARAMETERS, ids=lambda each: each.__name__)
def test_each_published_architecture_has_its_number_of_parameters(
    constructor: Callable[..., VisionMamba],
) -> None:
    with torch.device("meta"):
        encoder = constructor()
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[constructor]


def test_bands_and_classes_may_differ_from_the_published_ones() -> None:
    with torch.device("meta"):
        encoder = models.vim_tiny(bands=6, classes=4)
    assert encoder.patch_embed.proj.weight.shape == (192, 6, 16, 16)
    assert encoder.head.weight.shape == (4, 192)


def test_each_published_architecture_is_listed_with_where_its_weights_are() -> None:
    listed = {each.name: each for each in models.available() if each.path is None}
    assert set(listed) == {constructor.__name__ for constructor in PARAMETERS}
    assert all("hf://hustvl/Vim-" in each.note for each in listed.values())


def test_an_architecture_is_not_run_on_random_weights() -> None:
    with pytest.raises(ModelError, match=r"--fetch vim_tiny.*vim_t_midclstok_76p1acc\.pth"):
        models.weights_path("vim_tiny")


def test_a_file_is_its_own_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.touch()
    assert models.weights_path(str(file)) == file


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"vim_giant: no such file .* shipped models: ") as error:
        models.weights_path("vim_giant")
    assert "\n" not in str(error.value)


def test_models_that_ship_are_listed_and_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    assert models.shipped("landcover") is None
    weights = tmp_path / "landcover.safetensors"
    weights.touch()
    assert models.shipped("landcover") == models.weights_path("landcover") == weights
    assert [each.name for each in models.available() if each.path] == ["landcover"]
