from __future__ import annotations

import argparse
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from gigavim.checkpoint import (
    IMAGENET_MEAN,
    ModelSpec,
    infer_config,
    load_model,
    load_weights,
    save_model,
)
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError
from gigavim.head import ClassTable

SMALL = VisionMambaConfig(image_size=32, patch=8, stride=8, width=16, depth=2, state=4, classes=3)
SPEC = ModelSpec(
    dataclasses.replace(SMALL, bands=2),
    scale=1 / 10_000,
    mean=(0.1, 0.2),
    std=(0.3, 0.4),
    bands=("red", "nir"),
    partial_bands=True,
    spacing=10.0,
    unit="metre",
    tile=32,
    classes=ClassTable(("water", "soil", "crops"), ((0, 0, 255), (128, 64, 0), (0, 255, 0))),
    training_data="three fields near Ghent",
    licence="CC0-1.0",
    metrics={"accuracy": 0.5},
)


def encoder_of(config: VisionMambaConfig = SMALL) -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(config)


def message_of(path: Path, **kwargs: Any) -> str:
    """What a user is told when the file is no model: one line that names it."""
    with pytest.raises(ModelError) as error:
        load_model(path, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_saved_model_comes_back_with_all_that_running_it_takes(tmp_path: Path) -> None:
    path, encoder = tmp_path / "fields.safetensors", encoder_of(SPEC.architecture)
    save_model(path, encoder, SPEC)
    model = load_model(path)
    assert model.spec == SPEC
    assert model.path == path
    assert model.encoder.config == SPEC.architecture
    assert not model.encoder.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    expected = encoder.state_dict()
    assert model.encoder.state_dict().keys() == expected.keys()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_half_precision_weights_are_half_the_file_and_run_in_float32(tmp_path: Path) -> None:
    encoder = encoder_of(SPEC.architecture)
    save_model(tmp_path / "full.safetensors", encoder, SPEC)
    save_model(tmp_path / "half.safetensors", encoder, SPEC, torch.float16)
    full, half = (tmp_path / f"{name}.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    expected = encoder.state_dict()
    for name, tensor in load_model(half).encoder.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_the_checksum_tells_two_files_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_model(one, encoder_of(SPEC.architecture), SPEC)
    save_model(other, encoder_of(SPEC.architecture), dataclasses.replace(SPEC, tile=64))
    assert load_model(one).sha256 == load_model(one).sha256
    assert load_model(one).sha256 != load_model(other).sha256


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, class_token="double", norm="layer", layer_scale=1.0),
        dataclasses.replace(SMALL, class_token="none", position="none", classes=0),
        dataclasses.replace(SMALL, directions="v1", halve=False, expand=3, conv=3, dt_rank=2),
        dataclasses.replace(SMALL, directions="forward", halve=False),
        dataclasses.replace(
            SMALL, class_token="none", rope="tokens and residual", halve=False, image_size=32
        ),
        VisionMambaConfig(image_size=224, patch=16, stride=8, width=16, depth=1, classes=2),
    ],
    ids=["middle", "double", "neither", "v1", "forward", "rotary", "overlapping"],
)
def test_an_architecture_is_recognised_by_its_tensors(config: VisionMambaConfig) -> None:
    with torch.device("meta"):
        weights = VisionMamba(config).state_dict()
    if config.position == "none":
        config = dataclasses.replace(config, image_size=224)  # nothing tells
    assert infer_config(weights) == config


def published_vim_tiny() -> dict[str, Tensor]:
    """The 415 tensors of Vim-Ti by the names and shapes in which it is published."""
    mixer = {
        "A_log": (384, 16), "D": (384,), "A_b_log": (384, 16), "D_b": (384,),
        "in_proj.weight": (768, 192),
        "conv1d.weight": (384, 1, 4), "conv1d.bias": (384,), "x_proj.weight": (44, 384),
        "dt_proj.weight": (384, 12), "dt_proj.bias": (384,),
        "conv1d_b.weight": (384, 1, 4), "conv1d_b.bias": (384,), "x_proj_b.weight": (44, 384),
        "dt_proj_b.weight": (384, 12), "dt_proj_b.bias": (384,),
        "out_proj.weight": (192, 384),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 192), "pos_embed": (1, 197, 192),
        "patch_embed.proj.weight": (192, 3, 16, 16), "patch_embed.proj.bias": (192,),
        "head.weight": (1000, 192), "head.bias": (1000,), "norm_f.weight": (192,),
    }  # fmt: skip
    for i in range(24):
        shapes |= {f"layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"layers.{i}.norm.weight"] = (192,)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_published_state_dict_has_no_missing_and_no_unexpected_key(
    suffix: str, tmp_path: Path
) -> None:
    path, weights = tmp_path / f"vim{suffix}", published_vim_tiny()
    assert len(weights) == 415
    if suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        safetensors.torch.save_file(weights, path)
    model = load_model(path)
    assert model.encoder.state_dict().keys() == weights.keys()
    assert model.spec.architecture == VisionMambaConfig()
    assert model.spec.mean == IMAGENET_MEAN
    assert model.spec.tile == 224


def test_a_training_checkpoint_gives_its_weights_or_their_average(shared: Path) -> None:
    path = shared / "fixtures/vim_checkpoint_layout.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    assert any(not torch.equal(w, content["model_ema"][n]) for n, w in content["model"].items())
    for average, kept in ((False, "model"), (True, "model_ema")):
        encoder = load_model(path, average=average).encoder
        config = encoder.config
        assert (config.width, config.depth, config.patch, config.image_size) == (16, 2, 8, 32)
        assert encoder.state_dict().keys() == content[kept].keys()
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, content[kept][name]), name


def test_weights_alone_and_weights_of_several_processes_are_read(tmp_path: Path) -> None:
    weights = encoder_of().state_dict()
    torch.save(weights, tmp_path / "alone.pth")
    torch.save({"model": {f"module.{name}": w for name, w in weights.items()}}, tmp_path / "ddp.pt")
    for file in ("alone.pth", "ddp.pt"):
        read = load_weights(tmp_path / file)
        assert read.keys() == weights.keys()
        assert torch.equal(read["cls_token"], weights["cls_token"])


def test_there_may_be_no_average(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save({"model": encoder_of().state_dict()}, path)
    assert "holds no moving average" in message_of(path, average=True)


class Attack:
    """A pickle of it makes a file when it is opened without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return io.open, (str(self.target), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(
    legacy: bool, tmp_path: Path
) -> None:
    path, target = tmp_path / "attack.pth", tmp_path / "it ran"
    content = {"model": encoder_of().state_dict(), "extra": Attack(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = message_of(path)
    assert "was refused, nothing in it was run" in message
    assert "open" in message
    assert "safetensors" in message
    assert not target.exists()


def test_a_plain_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "attack.pth", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Attack(target)))
    message_of(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80\x02}q\x00.", b"PK\x03\x04rest"])
def test_a_file_that_is_no_model_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    message_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"short{suffix}"
    if suffix == ".pth":
        torch.save(encoder_of().state_dict(), path)
    else:
        safetensors.torch.save_file(encoder_of().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "get it again" in message_of(path)


def test_something_else_than_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(3)], path)
    assert "holds no weights" in message_of(path)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    assert "not the weights of a Vision Mamba" in message_of(path)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("head.bias", (4,), "head.bias is (4,), but the architecture has (3,)"),
        ("layers.1.mixer.A_log", (32, 5), "layers.1.mixer.A_log is (32, 5)"),
        ("pos_embed", (1, 18, 16), "pos_embed has 17 positions, not those of a square image"),
        ("pos_embed", (1, 17, 15), "pos_embed is (1, 17, 15), but the architecture has"),
        ("patch_embed.proj.weight", (16, 192), "patch_embed.proj.weight"),
        ("layers.0.mixer.A_log", (32,), "layers.0.mixer.A_log"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file(encoder_of().state_dict() | {name: torch.zeros(shape)}, path)
    assert said in message_of(path)


def test_a_checkpoint_of_another_architecture_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    safetensors.torch.save_file(encoder_of().state_dict(), path)
    message = message_of(path, architecture=VisionMambaConfig())
    assert "(1, 1, 16), but the architecture has (1, 1, 192)" in message


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path: Path) -> None:
    path, weights = tmp_path / "odd.safetensors", encoder_of().state_dict()
    lacking = {name: w for name, w in weights.items() if name != "layers.1.norm.weight"}
    safetensors.torch.save_file(lacking, path)
    assert "lacks layers.1.norm.weight (16,)" in message_of(path)
    safetensors.torch.save_file(weights | {"teacher.bias": torch.zeros(3)}, path)
    assert "1 tensors that the architecture has no place for, as teacher.bias" in message_of(path)


def test_weights_of_other_bands_need_a_specification(tmp_path: Path) -> None:
    path, encoder = tmp_path / "two.safetensors", encoder_of(SPEC.architecture)
    safetensors.torch.save_file(encoder.state_dict(), path)
    assert "takes 2 bands and does not say how to normalise them" in message_of(path)


def test_a_description_that_a_newer_version_wrote_is_refused(tmp_path: Path) -> None:
    path, encoder = tmp_path / "newer.safetensors", encoder_of(SPEC.architecture)
    for description in ('{"architecture": {"depth": 2, "experts": 8}}', "[]", "{"):
        safetensors.torch.save_file(encoder.state_dict(), path, {"gigavim": description})
        assert "update GigaVim" in message_of(path)


def test_a_specification_fits_its_architecture() -> None:
    with pytest.raises(ValueError, match="a model of 2 bands needs 2 names"):
        dataclasses.replace(SPEC, mean=(0.5,))
    with pytest.raises(ValueError, match="3 classes needs as many names, not 2"):
        dataclasses.replace(SPEC, classes=ClassTable.of_clusters(2))
    with pytest.raises(ValueError, match="another architecture"):
        save_model("never.safetensors", encoder_of(), SPEC)


def test_a_model_normalised_by_each_image_needs_no_statistics() -> None:
    spec = dataclasses.replace(SPEC, normalisation="image", mean=(), std=())
    assert ModelSpec.from_json(spec.to_json()) == spec
