from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gigavim import recompute
from gigavim.bench.measure import PeakMemory
from gigavim.encoder import Features, VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError, StoreError
from gigavim.mixer import TILE

SMALL = VisionMambaConfig(
    image_size=16, patch=8, stride=8, width=8, depth=2, state=3, classes=0, dt_rank=2
)
MODELS = {
    "published": SMALL,
    "head": replace(SMALL, class_token="head"),
    "tail": replace(SMALL, class_token="tail", depth=1),
    "double": replace(SMALL, class_token="double"),
    "mean": replace(SMALL, class_token="none", depth=3),
    "last": replace(SMALL, class_token="none", pool="last"),
    "v1": replace(SMALL, directions="v1"),
    "v1 with long taps": replace(SMALL, directions="v1", conv=6, class_token="double"),
    "forward": replace(SMALL, directions="forward", depth=3),
    "layer norm": replace(SMALL, norm="layer", layer_scale=0.5),
    "no positions": replace(SMALL, position="none", conv=2),
    "one tap": replace(SMALL, conv=1, halve=False),
}
Mix = Callable[[VisionMamba, Tensor, Tensor | None], Features]


def model_of(name: str, dtype: torch.dtype = torch.float64) -> VisionMamba:
    torch.manual_seed(0)
    encoder = VisionMamba(MODELS[name]).to(dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def random(*shape: int, like: VisionMamba, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(next(like.parameters()).dtype)


def results(mix: Mix, encoder: VisionMamba, batch: int, length: int) -> dict[str, Tensor]:
    """Features, and the gradients of a loss on all of them, for tokens, positions, parameters."""
    width = encoder.config.width
    inputs = {
        "tokens": random(batch, length, width, like=encoder, seed=2).requires_grad_(),
        "position": random(length, width, like=encoder, seed=3).requires_grad_(),
        **{name: each for name, each in encoder.named_parameters() if each.requires_grad},
    }
    position = inputs["position"] if encoder.config.position == "learned" else None
    features = mix(encoder, inputs["tokens"], position)
    loss = (features.tokens * random(*features.tokens.shape, like=encoder, seed=4)).sum()
    loss = loss + features.vector.square().sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return {
        "features": features.tokens.detach(),
        "vector": features.vector.detach(),
        **{f"gradient of {name}": each for name, each in zip(inputs, gradients, strict=True)},
    }


def in_chunks_of(chunk: int, folder: Path | None = None) -> Mix:
    return lambda encoder, tokens, position: recompute.mix(
        encoder, tokens, position, chunk=chunk, folder=folder
    )


def close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1e-3, float(tensor.abs().max())) if tensor.numel() else 1.0
        torch.testing.assert_close(
            found[name],
            tensor,
            rtol=0,
            atol=bound * scale,
            msg=lambda text, of=name: f"{of}: {text}",
        )


@given(
    name=st.sampled_from(sorted(MODELS)),
    batch=st.integers(1, 2),
    length=st.sampled_from([1, 2, 3, 7, 31]) | st.integers(1, 40),
    chunk=st.integers(1, 45),
    is_on_disk=st.booleans(),
)
@settings(max_examples=50)
def test_gradients_are_those_of_the_encoder_wherever_the_sequence_is_cut(
    name: str,
    batch: int,
    length: int,
    chunk: int,
    is_on_disk: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    encoder = model_of(name)
    folder = tmp_path_factory.mktemp("scratch") if is_on_disk else None
    found = results(in_chunks_of(chunk, folder), encoder, batch, length)
    close(found, results(VisionMamba.mix, encoder, batch, length), 1e-10)


@pytest.mark.parametrize("name", ["published", "v1", "forward", "double"])
def test_gradients_are_those_of_the_definition_of_the_scan(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = model_of(name)
    monkeypatch.setenv("GIGAVIM_SCAN", "reference")
    expected = results(VisionMamba.mix, encoder, 1, 50)
    close(results(in_chunks_of(9), encoder, 1, 50), expected, 1e-10)
    monkeypatch.delenv("GIGAVIM_SCAN")
    close(results(in_chunks_of(9), encoder, 1, 50), expected, 1e-10)


@pytest.mark.parametrize(("name", "chunk"), [("published", TILE), ("v1", 777), ("forward", 100)])
def test_float32_gradients_of_thousands_of_tokens_differ_by_rounding(
    name: str, chunk: int, tmp_path: Path
) -> None:
    encoder, length = model_of(name, torch.float32), TILE + 555
    found = results(in_chunks_of(chunk, tmp_path), encoder, 1, length)
    close(found, results(VisionMamba.mix, encoder, 1, length), 1e-4)


def test_an_empty_sequence_has_class_tokens_and_gradients() -> None:
    encoder = model_of("published")
    found = results(in_chunks_of(4), encoder, 1, 0)
    close(found, results(VisionMamba.mix, encoder, 1, 0), 1e-10)


def test_gradients_stop_where_nothing_is_trained(tmp_path: Path) -> None:
    encoder = model_of("published")
    encoder.requires_grad_(False)
    encoder.layers[1].mixer.out_proj.requires_grad_(True)
    encoder.layers[1].mixer.A_b_log.requires_grad_(True)
    found = results(in_chunks_of(7, tmp_path), encoder, 1, 40)
    close(found, results(VisionMamba.mix, encoder, 1, 40), 1e-10)
    assert {of for of in found if of.startswith("gradient of layers")} == {
        "gradient of layers.1.mixer.out_proj.weight",
        "gradient of layers.1.mixer.A_b_log",
    }


@pytest.mark.parametrize("is_within", [True, False])
def test_products_in_half_precision_are_so_again_for_the_gradients(is_within: bool) -> None:
    encoder = model_of("published", torch.float32)

    def halved(mix: Mix) -> dict[str, Tensor]:
        def half(encoder: VisionMamba, tokens: Tensor, position: Tensor | None) -> Features:
            with torch.autocast("cpu", torch.bfloat16):
                return mix(encoder, tokens, position)

        with torch.autocast("cpu", torch.bfloat16, enabled=is_within):
            return results(half, encoder, 1, 40)

    close(halved(in_chunks_of(7)), halved(VisionMamba.mix), 0.05)


def test_weights_that_changed_before_their_gradients_are_refused(tmp_path: Path) -> None:
    encoder = model_of("published")
    for folder in (None, tmp_path):
        tokens = random(1, 20, 8, like=encoder)
        features = recompute.mix(encoder, tokens, chunk=8, folder=folder)
        with torch.no_grad():
            encoder.layers[0].mixer.D.add_(1)
        with pytest.raises(RuntimeError, match="weights have changed"):
            features.vector.sum().backward()


def open_below(folder: Path) -> list[Path]:
    """Return the files of a folder that this process holds open, deleted ones too."""
    links = list(Path("/proc/self/fd").iterdir())
    held = [link.readlink() for link in links if link.is_symlink()]
    return [path for path in held if folder in path.parents]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_the_file_is_gone_when_the_gradients_are_there(tmp_path: Path) -> None:
    encoder = model_of("published")
    tokens = random(1, 20, 8, like=encoder)
    features = recompute.mix(encoder, tokens, chunk=8, folder=tmp_path)
    loss = features.vector.sum()
    assert len(open_below(tmp_path)) == 1
    loss.backward()
    assert not open_below(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_gradients_nothing_is_remembered(tmp_path: Path) -> None:
    encoder = model_of("published")
    tokens = random(1, 20, 8, like=encoder)
    with torch.no_grad():
        found = recompute.mix(encoder, tokens, chunk=8, folder=tmp_path)
        torch.testing.assert_close(found.tokens, encoder.mix(tokens).tokens, rtol=0, atol=1e-10)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    import resource
    import signal

    encoder = model_of("published")
    tokens = random(1, 400, 8, like=encoder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*ulimit -f.*") as raised:
            recompute.mix(encoder, tokens, chunk=16, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    encoder = model_of("published")
    with pytest.raises(StoreError, match=r"cannot write .*nowhere: no such file"):
        recompute.mix(encoder, random(1, 4, 8, like=encoder), chunk=2, folder=tmp_path / "nowhere")


def test_what_cannot_be_cut_is_refused() -> None:
    encoder = model_of("published")
    with pytest.raises(ValueError, match="at least one token, not 0"):
        recompute.mix(encoder, random(1, 4, 8, like=encoder), chunk=0)
    plain = replace(SMALL, class_token="none", position="none")
    for config, what in (
        (replace(plain, rope="tokens"), "rotary positions"),
        (replace(plain, block="cross"), "cross blocks"),
    ):
        with pytest.raises(ModelError, match=rf"{what} .*VisionMamba\.mix"):
            recompute.mix(VisionMamba(config), torch.zeros(1, 4, 8), chunk=2)


@pytest.mark.parametrize("length", [0, 1, 23, 24])
def test_pixels_are_read_in_chunks_and_again_for_the_gradients(length: int) -> None:
    encoder = model_of("published")
    patches = random(length, 8, 8, 3, like=encoder)
    read: list[tuple[int, int]] = []

    def pixels(start: int, stop: int) -> Tensor:
        read.append((start, stop))
        return patches[start:stop]

    weights = tuple(encoder.patch_embed.parameters())
    tokens = recompute.embed(encoder, pixels, length, chunk=6)
    asked = list(read)
    assert all(stop - start <= 6 for start, stop in asked)
    found = torch.autograd.grad(tokens.square().sum(), weights)
    assert sorted(read) == sorted(2 * asked)

    expected = encoder.embed(patches)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), weights))


def test_a_decoder_may_be_recomputed_in_chunks() -> None:
    encoder = model_of("published")
    decoder = nn.Sequential(nn.Linear(8, 5), nn.GELU()).double()
    tokens = random(2, 23, 8, like=encoder).requires_grad_()
    inputs = [tokens, *decoder.parameters()]
    found, expected = recompute.in_chunks(decoder, tokens, 6), decoder(tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


def test_memory_is_a_few_streams_whatever_the_depth(tmp_path: Path) -> None:
    encoder = VisionMamba(VisionMambaConfig(width=16, depth=4, state=4, classes=0))
    tokens = torch.randn(1, 40_000, 16)
    stream = tokens.nbytes / 2**20
    with PeakMemory() as peak:
        features = recompute.mix(encoder, tokens, chunk=1024, folder=tmp_path)
        features.tokens.square().mean().backward()
    assert peak.mib < 25 * stream  # autograd alone takes some 40 a layer
