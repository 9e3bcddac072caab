from __future__ import annotations

from pathlib import Path

import pytest

import images


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 1536 x 1024 px at 0.5 µm, tissue in the middle."""
    return images.write_slide(tmp_path_factory.mktemp("slide") / "slide.svs")


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 320 x 256 px at 10 m, water on the left, meadow on the right."""
    return images.write_scene(tmp_path_factory.mktemp("scene") / "scene.tif")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB encoder, patches of 16 px, tiles of 64 px, any spacing."""
    return images.write_model(tmp_path_factory.mktemp("model") / "rgb.safetensors")


@pytest.fixture(scope="session")
def scene_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of four bands, patches of 8 px."""
    return images.write_model(
        tmp_path_factory.mktemp("model") / "four.safetensors",
        bands=("blue", "green", "red", "nir"),
        patch=8,
    )
