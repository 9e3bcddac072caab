from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError, ModelError
from gigavim.pipelines.run import run_image

CPU = Resources(device="cpu")


@pytest.fixture(scope="module")
def cross_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB encoder of cross blocks, patches of 16 px, tiles of 64 px."""
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=64, patch=16, stride=16, width=16, depth=2, state=2, classes=0, norm="layer",
        class_token="none", position="learned", block="cross", mlp_ratio=2.0,
    )  # fmt: skip
    encoder = VisionMamba(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    path = tmp_path_factory.mktemp("model") / "cross.safetensors"
    save_model(path, encoder, ModelSpec(config, mean=(0.5,) * 3, std=(0.25,) * 3, tile=64))
    return path


@pytest.fixture(scope="module")
def config(cross_model: Path) -> RunConfig:
    return RunConfig(model=str(cross_model), order="cross")


@pytest.fixture(scope="module")
def store(slide: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one run of the slide."""
    path = tmp_path_factory.mktemp("whole") / "slide.gigavim.zarr"
    assert run_image(str(slide), path, config, CPU).status == "complete"
    return path


def features(store: Path) -> np.ndarray:
    read: np.ndarray = zarr.open_group(store, mode="r")["tokens/features"][:]
    return read.astype(np.float32)


def test_the_order_of_a_cross_model_is_recorded(store: Path) -> None:
    group = zarr.open_group(store, mode="r")
    assert group["tokens"].attrs["order"] == "cross"
    index = group["tokens/grid_index"][:]
    assert index.tolist() == sorted(index.tolist())
    assert np.isfinite(features(store)).all()
    assert features(store).std() > 0.1


def test_the_slide_is_mixed_as_the_encoder_mixes_it(
    store: Path, slide: Path, cross_model: Path
) -> None:
    import tifffile

    group = zarr.open_group(store, mode="r")
    index = torch.from_numpy(group["tokens/grid_index"][:])
    image = torch.from_numpy(tifffile.imread(slide)).float() / 255
    patches = ((image - 0.5) / 0.25).unfold(0, 16, 16).unfold(1, 16, 16)  # (row, column, band, ...)
    chosen = patches[index[:, 0], index[:, 1]].permute(0, 2, 3, 1)
    encoder = load_model(cross_model).encoder
    with torch.inference_mode():
        position = encoder.position_for(*patches.shape[:2], index)
        mixed = encoder.mix(encoder.embed(chosen)[None], position, index=index)
    np.testing.assert_allclose(features(store), mixed.tokens[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(group["image/vector"][:], mixed.vector[0], rtol=1e-3, atol=1e-3)


def test_chunks_do_not_change_the_result(
    store: Path, slide: Path, config: RunConfig, tmp_path: Path
) -> None:
    again = tmp_path / "chunks.gigavim.zarr"
    run_image(str(slide), again, config, Resources(device="cpu", chunk=100))
    np.testing.assert_allclose(features(again), features(store), rtol=2e-3, atol=2e-3)


def test_a_killed_run_continues_on_the_disk_to_the_same_bits(
    store: Path, slide: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gigavim.pipelines.memory.IN_MEMORY", 0)
    again = tmp_path / "killed.gigavim.zarr"
    for steps in (4, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            run_image(str(slide), again, config, CPU, progress=Stops(steps))
    assert run_image(str(slide), again, config, CPU).status == "complete"
    assert np.array_equal(features(again), features(store))


class Stops:
    """Progress that is interrupted after so many steps of mixing."""

    def __init__(self, after: int) -> None:
        self.left, self.mixing = after, False

    def start(self, title: str, tokens: int) -> None:
        self.mixing = title == "mixing"

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        self.left -= self.mixing
        if self.left == 0:
            raise KeyboardInterrupt


def test_tiles_are_grids_of_their_own(slide: Path, config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "tiles.gigavim.zarr"
    run_image(str(slide), path, replace(config, mode="tiles"), CPU)
    group = zarr.open_group(path, mode="r")
    assert group["tokens"].attrs["order"] == "cross"
    assert features(path).std() > 0.1


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_a_cross_model_is_run_in_no_other_order(
    slide: Path, config: RunConfig, tmp_path: Path, order: str
) -> None:
    with pytest.raises(ModelError, match=f"not in {order} order; leave --order out"):
        run_image(str(slide), tmp_path / "no.zarr", replace(config, order=order), CPU)


def test_a_sequence_model_is_not_run_across(slide: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no blocks for --order cross"):
        run_image(str(slide), tmp_path / "no.zarr", RunConfig(model=str(model), order="cross"), CPU)


def test_workers_do_not_share_rows_and_columns(
    slide: Path, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(GigavimError, match="not rows and columns"):
        run_image(str(slide), tmp_path / "no.zarr", config, Resources(device="cpu", workers=2))
