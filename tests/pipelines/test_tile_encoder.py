"""Slides by networks of any kind, tile by tile, held against tiles that are cut by hand."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tifffile
import torch
import zarr
from numpy.typing import NDArray

from gigavim.config import Resources, RunConfig
from gigavim.errors import ModelError, StoreError
from gigavim.exports.result import Result
from gigavim.pipelines.inspect import describe
from gigavim.pipelines.run import run_image
from gigavim.tile_encoder import load_tile_encoder
from images import write_encoder, write_model, write_slide

CPU = Resources(device="cpu", readers=1)
TILE = 64


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "convnet.pt", TILE)


@pytest.fixture(scope="module")
def config(encoder: Path) -> RunConfig:
    return RunConfig(encoder=str(encoder), trust=True, heads=("features",))


@pytest.fixture(scope="module")
def store(slide: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the tiles of a slide."""
    path = tmp_path_factory.mktemp("store") / "slide.gigavim.zarr"
    assert run_image(str(slide), path, config, CPU).status == "complete"
    return path


def by_hand(encoder: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Apply the network, which averages over a tile, to pixels of shape (n, T, T, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(encoder)
    pixels = torch.from_numpy((tiles / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network(pixels).mean((2, 3)).numpy()


def same(first: Path, second: Path) -> None:
    one, other = zarr.open_group(first, mode="r"), zarr.open_group(second, mode="r")
    for name in ("tiles/vectors", "tiles/coords", "tiles/valid", "tokens/features", "image/vector"):
        np.testing.assert_array_equal(one[name][...], other[name][...], err_msg=name)


def test_features_are_those_of_the_network_on_each_tile(
    store: Path, slide: Path, encoder: Path
) -> None:
    group, image = zarr.open_group(store, mode="r"), tifffile.imread(slide)
    coords = group["tiles/coords"][:]
    assert len(coords) > 50
    assert not (coords % TILE).any()
    expected = by_hand(encoder, np.stack([image[y : y + TILE, x : x + TILE] for x, y in coords]))
    np.testing.assert_allclose(group["tiles/vectors"][:], expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(group["image/vector"][:], expected.mean(0), rtol=2e-3, atol=2e-3)
    # A tile is a token.
    places = group["tokens/grid_index"][:] * TILE
    order = [{tuple(xy): row for row, xy in enumerate(coords)}[x, y] for y, x in places]
    np.testing.assert_allclose(group["tokens/features"][:], expected[order], rtol=2e-3, atol=2e-3)


def test_tiles_are_read_at_the_spacing_that_is_asked_for(
    slide: Path, encoder: Path, config: RunConfig, tmp_path: Path
) -> None:
    store = tmp_path / "coarse.gigavim.zarr"
    run_image(str(slide), store, dataclasses.replace(config, spacing=1.0, tile=32), CPU)
    group, image = zarr.open_group(store, mode="r"), tifffile.imread(slide)
    half = image.reshape(512, 2, 768, 2, 3).mean((1, 3))
    coords = group["tiles/coords"][:] // 2
    expected = by_hand(encoder, np.stack([half[y : y + 32, x : x + 32] for x, y in coords]))
    np.testing.assert_allclose(group["tiles/vectors"][:], expected, rtol=0.02, atol=0.02)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    store: Path, slide: Path, config: RunConfig, tmp_path: Path
) -> None:
    class Stops:
        left = 2

        def start(self, title: str, tokens: int) -> None:
            pass

        def advance(self, tokens: int, megapixels: float = 0.0) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    again = tmp_path / "again.gigavim.zarr"
    with pytest.raises(KeyboardInterrupt):
        run_image(str(slide), again, config, CPU, progress=Stops())
    assert run_image(str(slide), again, config, Resources("cpu", readers=3)).resumed
    same(store, again)


def test_a_tile_that_cannot_be_read_has_no_feature(
    encoder: Path, config: RunConfig, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "broken.svs", break_tile=14)  # x 512 to 768, y 512 to 768
    store = tmp_path / "broken.gigavim.zarr"
    summary = run_image(str(slide), store, dataclasses.replace(config, heads=("clusters",)), CPU)
    group = zarr.open_group(store, mode="r")
    coords, valid = group["tiles/coords"][:], group["tiles/valid"][:] > 0
    broken = ((coords >= 512) & (coords < 768)).all(1)
    assert broken.any()
    np.testing.assert_array_equal(valid, ~broken)
    assert summary.unreadable_tokens == broken.sum()
    assert not group["tiles/vectors"][:][broken].any()
    result = Result.open(store)
    assert result.table().readable == valid.sum()
    assert (result.table().side_px, result.table().side_level0) == (TILE, (TILE, TILE))
    assert "clusters" in result.heads()


def test_another_encoder_or_description_is_another_run(
    slide: Path, encoder: Path, config: RunConfig, store: Path, tmp_path: Path
) -> None:
    other = write_encoder(tmp_path / "convnet.pt", TILE, seed=1)
    with pytest.raises(StoreError, match="model weights_sha256"):
        run_image(str(slide), store, dataclasses.replace(config, encoder=str(other)), CPU)
    other.write_bytes(encoder.read_bytes())
    text = encoder.with_suffix(".toml").read_text()
    other.with_suffix(".toml").write_text(text.replace("std = [0.25", "std = [0.2"))
    with pytest.raises(StoreError, match="spec std"):
        run_image(str(slide), store, dataclasses.replace(config, encoder=str(other)), CPU)
    # Where it lies is not.
    other.with_suffix(".toml").write_text(text)
    moved = dataclasses.replace(config, encoder=str(other))
    assert run_image(str(slide), store, moved, CPU).status == "skipped"


def test_a_program_is_run_on_demand_alone(encoder: Path, tmp_path: Path) -> None:
    class Writes(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, self.path)
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Writes(str(tmp_path / "written"))).save(tmp_path / "program.pt")
    with pytest.raises(ModelError, match="nothing in it was run: it is TorchScript"):
        load_tile_encoder(tmp_path / "program.pt")
    assert not (tmp_path / "written").exists()
    with pytest.raises(ModelError, match="--trust"):
        load_tile_encoder(encoder)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Runs()}, tmp_path / "net.pth")
    (tmp_path / "net.toml").write_text('network = "resnet10t"')
    with pytest.raises(ModelError, match="was refused, nothing in it was run"):
        load_tile_encoder(tmp_path / "net.pth", trust=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("description", "fault"),
    [
        ("tile = 64", "does not say its mean and std"),
        ("tile = 64\nmeen = 1", "does not describe an encoder"),
        ('pool = "max"', "pool is none, first or mean, not max"),
        ("tile = 8\nmean = [0, 0, 0]\nstd = [1, 1, 1]", "does not take tiles of 8 px"),
        ("tile = 64\nmean = [0, 0, 0]\nstd = [1, 1, 1]", r"makes \(1, 12, 4, 4\) of a tile"),
    ],
)
def test_what_a_description_lacks_is_said(
    encoder: Path, tmp_path: Path, description: str, fault: str
) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(encoder.read_bytes())
    path.with_suffix(".toml").write_text(description)
    with pytest.raises(ModelError, match=fault):
        load_tile_encoder(path, trust=True)


def test_features_that_a_store_cannot_hold_are_refused(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(encoder.read_bytes())
    text = encoder.with_suffix(".toml").read_text()
    path.with_suffix(".toml").write_text(text.replace("0.25, 0.25", "1e-9, 1e-9"))
    config = RunConfig(encoder=str(path), trust=True, read_all=True)
    with pytest.raises(ModelError, match="no number up to 65504"):
        run_image(str(write_slide(tmp_path / "a.svs")), tmp_path / "a.gigavim.zarr", config, CPU)


def test_weights_of_a_network_of_timm_need_no_trust(slide: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    # As published: with the classifier that it was trained with.
    network = timm.create_model("test_resnet", num_classes=10).eval()
    path = tmp_path / "small.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    path.with_suffix(".toml").write_text('network = "test_resnet"\ntile = 64\nspacing = 0.5')
    store = tmp_path / "slide.gigavim.zarr"
    run_image(str(slide), store, RunConfig(encoder=str(path), heads=("features",)), CPU)

    group, image = zarr.open_group(store, mode="r"), tifffile.imread(slide)
    coords = group["tiles/coords"][:9]
    own = network.pretrained_cfg
    tiles = np.stack([image[y : y + TILE, x : x + TILE] for x, y in coords])
    pixels = (tiles / 255 - np.array(own["mean"])) / np.array(own["std"])
    with torch.inference_mode():
        maps = network.forward_features(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))
    np.testing.assert_allclose(group["tiles/vectors"][:9], maps.mean((2, 3)), rtol=2e-3, atol=2e-3)

    path.with_suffix(".toml").write_text('network = "test_vit"')
    with pytest.raises(ModelError, match="not the weights of this network"):
        load_tile_encoder(path)
    path.with_suffix(".toml").write_text('network = "resnet_of_nobody"')
    with pytest.raises(ModelError, match="timm makes no resnet_of_nobody"):
        load_tile_encoder(path)


def test_tokens_of_a_network_of_timm_are_pooled_as_its_description_says(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    pixels = torch.randn(2, 160, 160, 3)
    with torch.inference_mode():
        tokens = network(pixels.permute(0, 3, 1, 2))
    for pool, expected in (("first", tokens[:, 0]), ("mean", tokens.mean(1))):
        arguments = "[arguments]\nglobal_pool = ''"
        path.with_suffix(".toml").write_text(f'network = "test_vit"\npool = "{pool}"\n{arguments}')
        model = load_tile_encoder(path)
        assert model.spec.tile == 160
        with torch.inference_mode():
            torch.testing.assert_close(model.encoder.embed(pixels), expected)


def test_a_spacing_is_never_guessed(slide: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "net.pt", TILE, spacing=None)
    config = RunConfig(encoder=str(encoder), trust=True, heads=("features",))
    with pytest.raises(ModelError, match="pass --spacing"):
        run_image(str(slide), tmp_path / "a.gigavim.zarr", config, CPU)
    facts = describe(str(slide), dataclasses.replace(config, spacing=0.5), CPU)
    assert (facts["run"]["mode"], facts["run"]["spacing"]) == ("tiles", [0.5, 0.5])


def test_encoder_and_model_belong_together(slide: Path, config: RunConfig, tmp_path: Path) -> None:
    pixels = write_model(tmp_path / "rgb.safetensors")
    both = dataclasses.replace(config, model=str(pixels))
    with pytest.raises(ModelError, match="reads pixels, not features of tiles"):
        run_image(str(slide), tmp_path / "a.gigavim.zarr", both, CPU)
    alone = RunConfig(model=str(pixels), tile=64)
    with pytest.raises(ModelError, match="name one with --encoder"):
        run_image(str(slide), tmp_path / "a.gigavim.zarr", alone, CPU)
