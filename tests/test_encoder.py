from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gigavim.encoder import Block, DirectionState, Mixer, VisionMamba, VisionMambaConfig
from gigavim.precision import product_precision, products_in

SMALL = VisionMambaConfig(image_size=32, patch=8, stride=8, width=16, depth=2, state=4, classes=5)
CONFIGS = {
    "published": SMALL,
    "overlapping patches": replace(SMALL, stride=4),
    "head": replace(SMALL, class_token="head"),
    "tail": replace(SMALL, class_token="tail"),
    "double": replace(SMALL, class_token="double"),
    "mean": replace(SMALL, class_token="none", halve=False),
    "last": replace(SMALL, class_token="none", pool="last"),
    "no positions": replace(SMALL, position="none"),
    "v1": replace(SMALL, directions="v1"),
    "forward": replace(SMALL, directions="forward"),
    "layer norm": replace(SMALL, norm="layer", layer_scale=0.5),
    "rotary": replace(SMALL, class_token="none", rope="tokens and residual", halve=False),
    "rotary tokens": replace(SMALL, class_token="none", rope="tokens"),
    "wide": replace(SMALL, expand=3, conv=3, dt_rank=2, bands=4),
}


def mixer_of(encoder: VisionMamba) -> Mixer:
    block = encoder.layers[0]
    assert isinstance(block, Block)
    return block.mixer


def model_of(config: VisionMambaConfig) -> VisionMamba:
    """A float64 model with every parameter moved off its initial value: no mistake hides."""
    torch.manual_seed(0)
    encoder = VisionMamba(config).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def images_for(config: VisionMambaConfig, *, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, config.bands, config.image_size, config.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_the_book(weights: dict[str, Tensor], config: VisionMambaConfig, images: Tensor) -> Tensor:
    """The definition of Vim, one token of one image at a time, without any of our code."""
    return torch.stack([_logits(weights, config, image) for image in images])


def _logits(weights: dict[str, Tensor], config: VisionMambaConfig, image: Tensor) -> Tensor:
    w = weights
    tokens = nn.functional.conv2d(
        image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], config.stride
    )
    sequence = list(tokens.flatten(1).T)
    count = len(sequence)
    match config.class_token:
        case "middle":
            sequence.insert(count // 2, w["cls_token"][0, 0])
            read = [count // 2]
        case "head":
            sequence.insert(0, w["cls_token"][0, 0])
            read = [0]
        case "tail":
            sequence.append(w["cls_token"][0, 0])
            read = [count]
        case "double":
            sequence = [w["cls_token_head"][0, 0], *sequence, w["cls_token_tail"][0, 0]]
            read = [0, count + 1]
        case "none":
            read = list(range(count)) if config.pool == "mean" else [count - 1]
    hidden = torch.stack(sequence)
    if config.position == "learned":
        hidden = hidden + w["pos_embed"][0]

    residual = torch.zeros_like(hidden)
    for i in range(config.depth):
        if config.rope != "none":
            hidden = _rotated(w, hidden)
        if config.rope == "tokens and residual":
            residual = _rotated(w, residual)
        residual = residual + hidden
        layer = {
            name.removeprefix(f"layers.{i}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"layers.{i}.")
        }
        normed = _normed(residual, layer["norm.weight"], layer.get("norm.bias"))
        hidden = _mixed(layer, config, normed)
    features = _normed(residual + hidden, w["norm_f.weight"], w.get("norm_f.bias"))
    return w["head.weight"] @ features[read].mean(0) + w["head.bias"]


def _normed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        return nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _rotated(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    # The tables are among the weights, in float32; test_position checks them.
    cos, sin = w["rope.freqs_cos"], w["rope.freqs_sin"]
    turned = torch.empty_like(tokens)
    for t, token in enumerate(tokens):
        for k in range(0, tokens.shape[1], 2):
            a, b = token[k], token[k + 1]
            turned[t, k] = a * cos[t, k] - b * sin[t, k]
            turned[t, k + 1] = b * cos[t, k] + a * sin[t, k]
    return turned


def _mixed(layer: dict[str, Tensor], config: VisionMambaConfig, tokens: Tensor) -> Tensor:
    w = {name.removeprefix("mixer."): tensor for name, tensor in layer.items()}
    x, z = (tokens @ w["in_proj.weight"].T).chunk(2, -1)
    y = _scanned(w, _convolved(w, "", x), z, "", "A_log")
    if config.directions == "v2":
        x_back, z_back = x.flip(0), z.flip(0)
        y = y + _scanned(w, _convolved(w, "_b", x_back), z_back, "_b", "A_b_log").flip(0)
        y = y / 2 if config.halve else y
    if config.directions == "v1":
        y = y + _scanned(w, _convolved(w, "", x).flip(0), z.flip(0), "", "A_b_log").flip(0)
    return y @ w["out_proj.weight"].T * w.get("gamma", torch.ones(1))


def _convolved(w: dict[str, Tensor], suffix: str, x: Tensor) -> Tensor:
    taps = w[f"conv1d{suffix}.weight"][:, 0]
    padded = torch.cat([torch.zeros(taps.shape[1] - 1, x.shape[1], dtype=x.dtype), x])
    rows = [(padded[t : t + taps.shape[1]] * taps.T).sum(0) for t in range(len(x))]
    u = torch.stack(rows) + w[f"conv1d{suffix}.bias"]
    return u * u.sigmoid()


def _scanned(w: dict[str, Tensor], u: Tensor, z: Tensor, suffix: str, decay: str) -> Tensor:
    N = w[decay].shape[1]
    A = -w[decay].exp()
    h = torch.zeros_like(A)
    outputs = []
    for u_t, z_t in zip(u, z, strict=True):
        parts = w[f"x_proj{suffix}.weight"] @ u_t
        low, B, C = parts[: -2 * N], parts[-2 * N : -N], parts[-N:]
        raw = w[f"dt_proj{suffix}.weight"] @ low + w[f"dt_proj{suffix}.bias"]
        dt = torch.log1p(raw.exp())
        h = torch.exp(dt[:, None] * A) * h + (dt * u_t)[:, None] * B
        outputs.append((h @ C + w[f"D{suffix}"] * u_t) * z_t * z_t.sigmoid())
    return torch.stack(outputs)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_the_one_in_the_paper(name: str) -> None:
    config = CONFIGS[name]
    encoder, images = model_of(config), images_for(config)
    with torch.no_grad():
        expected = by_the_book(dict(encoder.state_dict()), config, images)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-10, atol=1e-10)


def fixture_of(shared: Path, name: str) -> tuple[dict[str, Any], VisionMamba]:
    fixture = torch.load(shared / f"fixtures/vim_{name}.pt", weights_only=True)
    given = fixture["config"]
    config = VisionMambaConfig(
        image_size=given["img_size"],
        patch=given["patch_size"],
        stride=given["stride"],
        width=given["embed_dim"],
        depth=given["depth"],
        classes=given["num_classes"],
    )
    encoder = VisionMamba(config)
    encoder.load_state_dict(fixture["model"], strict=True)
    return fixture, encoder


@pytest.mark.parametrize("name", ["nano", "micro"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_published_code_gives_the_same_logits(
    shared: Path, name: str, dtype: torch.dtype, bound: float
) -> None:
    fixture, encoder = fixture_of(shared, name)
    with torch.no_grad():
        logits = encoder.to(dtype)(fixture["input"].to(dtype)).double()
    torch.testing.assert_close(logits, fixture["logits_f64"], atol=bound, rtol=0)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("name", ["nano", "micro"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_published_code_gives_the_same_features_whole_or_in_chunks(
    shared: Path, name: str, dtype: torch.dtype, bound: float, chunk: int | None
) -> None:
    fixture, encoder = fixture_of(shared, name)
    patch = encoder.config.patch
    images = fixture["input"].to(dtype).unfold(2, patch, patch).unfold(3, patch, patch)
    with torch.no_grad():
        tokens = encoder.to(dtype).embed(images.permute(0, 2, 3, 4, 5, 1).flatten(1, 2))
        features = encoder.mix(tokens, encoder.position_for(4, 4), chunk=chunk)
    vector = features.vector.double()
    torch.testing.assert_close(vector, fixture["pooled_f64"], atol=bound, rtol=0)
    others = [i for i in range(17) if i != fixture["cls_index"]]
    expected = fixture["tokens_f64"][:, others].double()
    # The tokens of nano were stored in float32.
    bound = max(bound, 1e-6) if name == "nano" else bound
    torch.testing.assert_close(features.tokens.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("name", ["nano", "micro"])
def test_products_in_bfloat16_change_features_by_a_hundredth(
    shared: Path, name: str, chunk: int | None
) -> None:
    if product_precision("cpu", "bfloat16").precision == "float32":
        pytest.skip("needs a CPU with bfloat16 arithmetic")
    fixture, encoder = fixture_of(shared, name)
    patch = encoder.config.patch
    images = fixture["input"].unfold(2, patch, patch).unfold(3, patch, patch)
    with torch.no_grad(), products_in("bfloat16", "cpu"):
        tokens = encoder.embed(images.permute(0, 2, 3, 4, 5, 1).flatten(1, 2))
        features = encoder.mix(tokens, encoder.position_for(4, 4), chunk=chunk)
    assert tokens.dtype == features.tokens.dtype == torch.float32
    others = [i for i in range(17) if i != fixture["cls_index"]]
    for actual, key in [(features.tokens, "tokens_f64"), (features.vector, "pooled_f64")]:
        expected = fixture[key][:, others] if key == "tokens_f64" else fixture[key]
        error = (actual.double() - expected).norm() / expected.norm()
        assert 1e-4 < error < 2e-2, key  # less would be float32


def test_products_are_in_float32_unless_asked_otherwise() -> None:
    left, right = torch.rand(3, 3), torch.rand(3, 3)
    with products_in("float32", "cpu"):
        assert (left @ right).dtype == torch.float32
    assert product_precision("cpu", "float32").precision == "float32"
    with pytest.raises(ValueError, match="float32 or bfloat16, not float16"):
        product_precision("cpu", "float16")  # type: ignore[arg-type]


def test_each_block_gives_what_the_published_one_gives(shared: Path) -> None:
    fixture, encoder = fixture_of(shared, "micro")
    encoder.double()
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in encoder.layers:
        # A copy of the residual: the next block adds to it in place.
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out)))
    with torch.no_grad():
        encoder(fixture["input"].double())
    for (residual, hidden), expected_residual, expected_hidden in zip(
        seen, fixture["layer_residual_f64"], fixture["layer_hidden_f64"], strict=True
    ):
        torch.testing.assert_close(residual, expected_residual, atol=1e-9, rtol=0)
        torch.testing.assert_close(hidden, expected_hidden, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "grads"), [("nano", "grads"), ("micro", "grads_f64")])
def test_published_code_gives_the_same_gradients(shared: Path, name: str, grads: str) -> None:
    fixture, encoder = fixture_of(shared, name)
    encoder.double()
    images = fixture["input"].double().requires_grad_()
    loss = nn.functional.cross_entropy(encoder(images), fixture["target"])
    torch.testing.assert_close(loss, fixture["loss_f64"], atol=1e-9, rtol=0)
    torch.autograd.backward(loss)
    expected = {name: grad.double() for name, grad in fixture[grads].items()}
    expected["input"] = fixture[grads.replace("grads", "grad_input")].double()
    actual = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    actual["input"] = images.grad
    assert actual.keys() == expected.keys()
    for key, grad in expected.items():
        error = (actual[key] - grad).norm() / grad.norm()
        assert error < 1e-4, key


def random_sequence(encoder: VisionMamba, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    shape = (2, length, encoder.config.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


NOT_ROTARY = [name for name, config in CONFIGS.items() if config.rope == "none"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NOT_ROTARY), st.integers(1, 40), st.integers(1, 45))
def test_the_chunk_size_does_not_change_the_result(name: str, length: int, chunk: int) -> None:
    encoder = model_of(CONFIGS[name])
    tokens = random_sequence(encoder, length)
    position = encoder.position_for(1, length)
    with torch.no_grad():
        whole = encoder.mix(tokens, position)
        cut = encoder.mix(tokens, position, chunk=chunk)
    torch.testing.assert_close(cut.tokens, whole.tokens, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(cut.vector, whole.vector, atol=1e-10, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["published", "v1", "wide"]),
    st.integers(0, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n)))),
)
def test_a_block_may_be_cut_anywhere_in_both_directions(
    name: str, length_and_cuts: tuple[int, list[int]]
) -> None:
    length, cuts = length_and_cuts
    encoder = model_of(CONFIGS[name])
    block = encoder.layers[0]
    assert isinstance(block, Block)
    residual = random_sequence(encoder, length)
    parts = [slice(a, b) for a, b in pairwise(sorted([0, *cuts, length]))]
    added = torch.zeros_like(residual)
    with torch.no_grad():
        state, halos = DirectionState(), []
        for part in parts:
            halos.append(state.halo)
            share, state = block.step(residual[:, part], state)
            added[:, part] += share
        state = DirectionState()
        for part in reversed(parts):
            halo = halos.pop()
            # v1 convolves in reading order, whatever the direction of its scan.
            state = DirectionState(state.h, halo) if name == "v1" else state
            share, state = block.step(residual[:, part], state, reverse=True)
            added[:, part] += share
        torch.testing.assert_close(added, block(residual), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["published", "v1", "forward"])
@pytest.mark.parametrize("chunk", [None, 1300])
def test_a_sequence_longer_than_the_cache_is_mixed_as_one(name: str, chunk: int | None) -> None:
    encoder = model_of(CONFIGS[name])
    tokens = random_sequence(encoder, 1500)
    with torch.no_grad():
        in_tiles = encoder.mix(tokens, chunk=chunk).tokens
    at_once = encoder.mix(tokens).tokens.detach()  # as it is trained
    torch.testing.assert_close(in_tiles, at_once, atol=1e-10, rtol=1e-10)


def test_a_chunk_may_be_trained_through() -> None:
    encoder = model_of(SMALL)
    tokens = random_sequence(encoder, 11)
    gradients = []
    for chunk in (None, 4):
        loss = encoder.mix(tokens, chunk=chunk).vector.square().sum()
        gradients.append(torch.autograd.grad(loss, mixer_of(encoder).in_proj.weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-10, rtol=1e-10)


def test_a_chunk_has_at_least_one_token() -> None:
    encoder = model_of(SMALL)
    with pytest.raises(ValueError, match="at least one token, not 0"):
        encoder.mix(random_sequence(encoder, 3), chunk=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_mixing_leaves_the_callers_tokens_alone(name: str) -> None:
    encoder = model_of(CONFIGS[name])
    tokens = random_sequence(encoder, 16)
    kept = tokens.clone()
    with torch.no_grad():
        encoder.mix(tokens, chunk=5)
        encoder.mix(tokens, encoder.position_for(4, 4))
    assert torch.equal(tokens, kept)


def test_every_token_sees_every_other_one() -> None:
    encoder = model_of(SMALL)
    tokens = random_sequence(encoder, 9).requires_grad_()
    for t in range(9):
        (grad,) = torch.autograd.grad(encoder.mix(tokens).tokens[0, t].sum(), tokens)
        assert (grad[0].abs().sum(-1) > 0).all()
        assert (grad[1] == 0).all()


def test_the_middle_class_token_follows_half_of_the_tokens() -> None:
    assert [SMALL.class_index(length) for length in (0, 1, 2, 121, 196, 729)] == [
        (0,),
        (0,),
        (1,),
        (60,),
        (98,),
        (364,),
    ]


def test_positions_on_the_grid_of_training_are_the_table_itself() -> None:
    encoder = model_of(SMALL)
    position = encoder.position_for(4, 4)
    assert position is not None
    table = encoder.pos_embed[0]
    assert torch.equal(position, torch.cat([table[:8], table[9:]]))


def test_rotary_positions_need_a_sequence_without_class_token() -> None:
    with pytest.raises(ValueError, match="without class token"):
        replace(SMALL, rope="tokens")


def test_initial_step_sizes_are_those_of_the_published_training() -> None:
    torch.manual_seed(0)
    mixer = mixer_of(VisionMamba(VisionMambaConfig(depth=1)))
    step = nn.functional.softplus(mixer.dt_proj.bias)
    assert 9e-4 < step.min() < 2e-3
    assert 0.08 < step.max() < 0.101
    assert (mixer.dt_proj_b.bias == 0).all()
    torch.testing.assert_close(mixer.A_log.exp()[5], torch.arange(1.0, 17.0))
