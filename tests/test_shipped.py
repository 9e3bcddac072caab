"""The models that an installation holds are small, say what they are, and know what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gigavim.checkpoint import load_model
from gigavim.models import WEIGHTS, weights_path

SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def test_both_kinds_of_image_have_a_model_that_names_what_it_sees() -> None:
    assert {"landcover", "nuclei", "scene-mini", "slide-mini"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_and_says_where_it_comes_from(name: str) -> None:
    path = weights_path(name)
    assert path.stat().st_size <= 8_000_000
    spec = load_model(path).spec
    assert spec.training_data
    assert spec.licence
    if spec.classes or spec.nuclei:
        assert spec.split
        assert {"low", "high"} <= {each.split()[-1] for each in spec.metrics}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_land_cover_is_named_with_and_without_haze(share: float, shared: Path) -> None:
    pytest.importorskip("torchmetrics", reason="needs the extra train")
    from gigavim.pipelines.train.classifier import measure
    from gigavim.pipelines.train.project import read_project
    from gigavim.pipelines.train.split import split_by_group
    from gigavim.pipelines.train.tiles import TileSet, read_tiles

    haze = read_project("landcover").phases[-1].augmentation
    assert haze is not None
    tiles = split_by_group(read_tiles(shared / "data/labelled/eurosat_rgb.zip"))
    rows = tiles.rows("val")[::15]
    clear = tiles.pixels[rows] - share * 255 * np.array(haze.haze)
    some = TileSet(tuple(tiles.tiles[row] for row in rows), np.clip(clear, 1, 255).astype(np.uint8))
    accuracy = measure(load_model(weights_path("landcover")), some, "val").by_name["accuracy"]
    assert accuracy.value > 0.85
