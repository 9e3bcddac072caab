"""The decoder from features to pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gigavim.architecture import VisionMambaConfig
from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.dense import Decoder, DecoderConfig
from gigavim.encoder import VisionMamba
from gigavim.errors import ModelError
from gigavim.nuclei import NucleiConfig

PATCH = 8
ENCODER = VisionMambaConfig(patch=PATCH, stride=PATCH, width=16)


def decoder(channels: tuple[int, ...] = (4, 6, 8), patch: int = PATCH) -> Decoder:
    """With random weights and statistics."""
    torch.manual_seed(0)
    made = Decoder(
        VisionMambaConfig(patch=patch, stride=patch, width=16), DecoderConfig(("a", "b"), channels)
    )
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return made.eval()


def image(rows: int, columns: int, patch: int = PATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and features."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, rows * patch, columns * patch, generator=generator)
    return pixels, torch.randn(1, 16, rows, columns, generator=generator)


@settings(max_examples=20)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    row=st.integers(6, 12),
    column=st.integers(6, 12),
)
@torch.inference_mode()
def test_a_window_with_its_halo_is_decoded_as_in_the_whole(
    rows: int, columns: int, row: int, column: int
) -> None:
    made, (pixels, features) = decoder(), image(24, 24)
    whole = made(pixels, features)
    halo = made.halo
    top, left, bottom, right = row - halo, column - halo, row + rows + halo, column + columns + halo
    window = made(
        pixels[:, :, top * PATCH : bottom * PATCH, left * PATCH : right * PATCH],
        features[:, :, top:bottom, left:right],
    )
    rim = halo * PATCH
    torch.testing.assert_close(
        window[:, :, rim:-rim, rim:-rim],
        whole[:, :, row * PATCH :, column * PATCH :][:, :, : rows * PATCH, : columns * PATCH],
        atol=1e-5, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [(4,), (4, 4), (4, 4, 4), (4, 4, 4, 4)])
def test_the_halo_is_as_far_as_a_pixel_sees_and_no_farther(channels: tuple[int, ...]) -> None:
    patch = 2 ** len(channels)
    made = decoder(channels, patch)
    side = 2 * made.halo + 3
    middle = side // 2
    pixels, features = image(side, side, patch)
    pixels.requires_grad_()
    features.requires_grad_()
    # Everything positive, so that no gradient is lost where a rectifier is off.
    for parameter in made.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.2)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    out = made(pixels.abs(), features.abs())
    window = slice(middle * patch, (middle + 1) * patch)
    out[:, :, window, window].sum().backward()
    seen = (
        (pixels.grad != 0).any(1)[0].unfold(0, patch, patch).unfold(1, patch, patch).any(-1).any(-1)
    )
    seen |= (features.grad != 0).any(1)[0]
    reach = (seen.nonzero() - middle).abs().max()
    assert reach <= made.halo
    assert reach >= made.halo - 1  # max-pooling passes gradients to one pixel of four


def test_a_decoder_that_does_not_fit_its_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="patches of 4 px"):
        Decoder(ENCODER, DecoderConfig(("a",), (4, 4)))
    with pytest.raises(ValueError, match="do not overlap"):
        Decoder(VisionMambaConfig(patch=8, stride=4), DecoderConfig(("a",)))


def test_a_decoder_is_saved_with_its_encoder(tmp_path: Path) -> None:
    made = decoder()
    torch.manual_seed(0)
    config = VisionMambaConfig(
        patch=PATCH, stride=PATCH, width=16, depth=1, classes=0, class_token="none", position="none"
    )
    encoder = VisionMamba(config)
    spec = ModelSpec(
        config, mean=(0.5,) * 3, std=(0.25,) * 3, decoder=made.config, nuclei=NucleiConfig(seed=0.4)
    )
    path = tmp_path / "dense.safetensors"
    save_model(path, encoder, spec, decoder=made)
    loaded = load_model(path)
    assert loaded.spec == spec
    assert loaded.decoder is not None
    pixels, features = image(2, 3)
    assert torch.equal(loaded.decoder(pixels, features), made(pixels, features))
    with pytest.raises(ValueError, match="another decoder"):
        save_model(path, encoder, spec)


def test_a_file_that_lacks_its_decoder_is_refused(tmp_path: Path) -> None:
    config = VisionMambaConfig(patch=PATCH, stride=PATCH, width=16, depth=1, classes=0)
    plain = ModelSpec(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    path = tmp_path / "half.safetensors"
    save_model(path, VisionMamba(config), plain)
    described = dataclasses.replace(plain, decoder=DecoderConfig(("a",)))
    save_file(load_file(path), path, {"gigavim": described.to_json()})
    with pytest.raises(ModelError, match=r"lacks decoder\."):
        load_model(path)
