from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig
from gigavim.encoder import TileEmbedding
from gigavim.errors import GigavimError, ModelError
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.commands import evaluate, train
from images import tissue, write_encoder, write_slide

PROJECT = """
data = "slides.csv"
task = "bags"

[model]
width = 16
depth = {depth}
state = 4

[[phases]]
epochs = 20
learning_rate = 2e-2
smoothing = 0.0
average = 0.8
"""
CPU = Resources("cpu", readers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored features of slides of which some have a dark spot, and what made them."""
    folder = tmp_path_factory.mktemp("stored")
    encoder = write_encoder(folder / "convnet.pt", 32)
    config = RunConfig(encoder=str(encoder), trust=True, heads=("features",))
    lines = ["file,label,group"]
    for number in range(6):
        image = tissue(256, 256, number)
        if number % 2:
            image[96:160, 96:160] = (60, 20, 120)
        slide = write_slide(folder / f"{number}.svs", image)
        run_image(str(slide), folder / f"{number}.gigavim.zarr", config, CPU)
        label = "spot" if number % 2 else "clear"
        lines.append(f"{number}.gigavim.zarr,{label},patient {number}")
    (folder / "slides.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", params=[0, 1], ids=["attention", "vim"])
def trained(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A model that reads tiles by attention alone, or through one block of Vim before."""
    project = folder / f"depth{request.param}.toml"
    project.write_text(PROJECT.format(depth=request.param))
    output = project.with_suffix(".safetensors")
    train(project, output, device="cpu", precision="float32")
    return output


def test_images_are_told_apart_by_stored_features_of_their_tiles(
    trained: Path, folder: Path
) -> None:
    model = load_model(trained)
    assert model.spec.tiles is not None
    assert model.spec.tiles.name == "convnet"
    assert (model.spec.tile, model.spec.spacing, model.spec.unit) == (32, 0.5, "µm")
    assert model.spec.metrics["test accuracy"] == 1
    seen = evaluate(trained, folder / "slides.csv")
    assert (seen["split"], seen["figures"]["accuracy"]["value"]) == ("test", 1)


def test_a_run_gives_scores_attention_and_a_vector(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=str(trained), encoder=str(folder / "convnet.pt"), trust=True)
    store = tmp_path / "1.gigavim.zarr"
    summary = run_image(str(folder / "1.svs"), store, config, CPU)
    assert max(summary.scores, key=lambda name: summary.scores[name]) == "spot"

    # The same by hand, from the features that were stored before.
    model = load_model(trained)
    before = zarr.open_group(folder / "1.gigavim.zarr", mode="r")
    features = torch.from_numpy(before["tokens/features"][:].astype(np.float32))
    embedding = model.encoder.patch_embed
    assert isinstance(embedding, TileEmbedding)
    with torch.inference_mode():
        tokens = model.encoder.mix(embedding.project(features)[None]).tokens
        scores = model.bag(tokens)[0].softmax(-1)
    group = zarr.open_group(store, mode="r")
    np.testing.assert_allclose(group["tokens/features"][:], tokens[0], rtol=0.02, atol=0.02)
    np.testing.assert_allclose(group["image/scores"][:], scores, atol=0.01)
    attention = group["tokens/attention"][:]
    np.testing.assert_allclose(attention.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(group["image/vector"][:], attention @ tokens[0].numpy(), atol=0.01)
    assert "attention" in group["maps"]


def test_chunks_do_not_change_what_is_read_from_tiles(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=str(trained), encoder=str(folder / "convnet.pt"), trust=True)
    stores = tmp_path / "a.gigavim.zarr", tmp_path / "b.gigavim.zarr"
    for store, chunk in zip(stores, (None, 5), strict=True):
        run_image(str(folder / "3.svs"), store, config, dataclasses.replace(CPU, chunk=chunk))
    one, other = (zarr.open_group(store, mode="r") for store in stores)
    for name in ("tokens/features", "image/scores", "image/vector"):
        np.testing.assert_allclose(one[name][:], other[name][:], rtol=2e-3, atol=1e-4)


def test_a_model_of_tiles_runs_with_its_own_encoder_alone(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    slide, store = str(folder / "1.svs"), tmp_path / "1.gigavim.zarr"
    with pytest.raises(ModelError, match=r"reads features of convnet .*--encoder"):
        run_image(slide, store, RunConfig(model=str(trained)), CPU)
    other = write_encoder(tmp_path / "other.pt", 32, seed=1)
    config = RunConfig(model=str(trained), encoder=str(other), trust=True)
    with pytest.raises(ModelError, match="is another encoder"):
        run_image(slide, store, config, CPU)
    config = RunConfig(model=str(trained), encoder=str(folder / "convnet.pt"), trust=True, tile=64)
    with pytest.raises(ModelError, match="was trained with tile 32"):
        run_image(slide, store, config, CPU)
    # Its encoder's weights are in their own file alone.
    names = {name for name, _ in load_model(trained).encoder.named_parameters()}
    assert not {name for name in names if "network" in name}


def test_features_of_different_encoders_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other.pt", 32, seed=1)
    config = RunConfig(encoder=str(other), trust=True, heads=("features",))
    run_image(str(folder / "0.svs"), tmp_path / "x.gigavim.zarr", config, CPU)
    table = (folder / "slides.csv").read_text().replace("0.gigavim", f"{tmp_path}/x.gigavim")
    (folder / "mixed.csv").write_text(table)
    (tmp_path / "project.toml").write_text(
        PROJECT.format(depth=0).replace("slides.csv", str(folder / "mixed.csv"))
    )
    with pytest.raises(GigavimError, match="run one encoder on all images"):
        train(tmp_path / "project.toml", tmp_path / "model.safetensors", device="cpu")


def test_a_model_of_tiles_has_no_places(folder: Path, tmp_path: Path) -> None:
    text = PROJECT.format(depth=1).replace("state = 4", 'state = 4\nposition = "sincos"')
    (tmp_path / "project.toml").write_text(text.replace("slides.csv", str(folder / "slides.csv")))
    with pytest.raises(GigavimError, match="without positions"):
        train(tmp_path / "project.toml", tmp_path / "model.safetensors", device="cpu")
