from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.cross import CrossBlock, Places
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.precision import product_precision, products_in

SMALL = VisionMambaConfig(
    image_size=16, patch=4, stride=4, width=8, depth=2, state=2, classes=3, class_token="none",
    position="none", norm="layer", block="cross",
)  # fmt: skip
CONFIGS = {
    "published": replace(SMALL, state=1, expand=1, mlp_ratio=4.0),
    "gated": replace(SMALL, gate=True),
    "both": replace(SMALL, gate=True, mlp_ratio=1.5, dt_rank=2, depth=1),
    "rms": replace(SMALL, norm="rms"),
    "positions": replace(SMALL, position="learned"),
}

masks = st.one_of(
    arrays(np.bool_, st.tuples(st.integers(1, 7), st.integers(1, 7))),
    st.integers(1, 30).map(lambda n: np.ones((1, n), np.bool_)),
    st.integers(1, 30).map(lambda n: np.ones((n, 1), np.bool_)),
    st.just(np.ones((5, 6), np.bool_)),
).filter(lambda mask: mask.any())


def model_of(config: VisionMambaConfig) -> VisionMamba:
    """A float64 model with every parameter moved off its initial value: no mistake hides."""
    torch.manual_seed(0)
    encoder = VisionMamba(config).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def tokens_for(mask: NDArray[np.bool_], width: int, *, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(mask.size)
    shape = (count, int(mask.sum()), width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def index_of(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.argwhere(mask))


def by_the_book(
    w: dict[str, Tensor], config: VisionMambaConfig, tokens: Tensor, mask: NDArray[np.bool_]
) -> Tensor:
    """What a block adds to the tokens of one sequence: a padded image, and loops over its cells."""
    normed = _normed(w, "norm", tokens)
    projected = normed @ w["op.in_proj.weight"].T
    x, z = projected.chunk(2, -1) if config.gate else (projected, None)
    image = torch.zeros(*mask.shape, config.inner, dtype=x.dtype)
    image[mask] = x
    bias = w.get("op.conv2d.bias")
    u = nn.functional.conv2d(
        image.permute(2, 0, 1)[None], w["op.conv2d.weight"], bias, padding=1, groups=config.inner
    )[0].permute(1, 2, 0)
    u = u * u.sigmoid()

    rows, columns = mask.shape
    along_rows = [(i, j) for i in range(rows) for j in range(columns) if mask[i, j]]
    along_columns = [(i, j) for j in range(columns) for i in range(rows) if mask[i, j]]
    y = torch.zeros_like(u)
    walks = (along_rows, along_columns, along_rows[::-1], along_columns[::-1])
    for k, walk in enumerate(walks):
        _scan(w, config, k, walk, u, y)

    out = nn.functional.layer_norm(
        y[mask], (config.inner,), w["op.out_norm.weight"], w["op.out_norm.bias"]
    )
    if z is not None:
        out = out * z * z.sigmoid()
    added = out @ w["op.out_proj.weight"].T
    if config.mlp_ratio:
        hidden = _normed(w, "norm2", tokens + added) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        added = added + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return added


def _normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.bias" in w:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return nn.functional.layer_norm(x, x.shape[-1:], weight, bias)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def _scan(
    w: dict[str, Tensor],
    config: VisionMambaConfig,
    k: int,
    walk: Sequence[tuple[int, int]],
    u: Tensor,
    y: Tensor,
) -> None:
    E, N = config.inner, config.state
    A = -w["op.A_logs"].view(4, E, N)[k].exp()
    h = torch.zeros_like(A)
    for cell in walk:
        parts = w["op.x_proj_weight"][k] @ u[cell]
        low, B, C = parts[: -2 * N], parts[-2 * N : -N], parts[-N:]
        dt = torch.log1p((w["op.dt_projs_weight"][k] @ low + w["op.dt_projs_bias"][k]).exp())
        h = torch.exp(dt[:, None] * A) * h + (dt * u[cell])[:, None] * B
        y[cell] += h @ C + w["op.Ds"].view(4, E)[k] * u[cell]


@given(st.sampled_from(sorted(CONFIGS)), masks)
@settings(max_examples=60)
def test_a_block_sees_rows_and_columns_of_any_foreground(
    name: str, mask: NDArray[np.bool_]
) -> None:
    config = CONFIGS[name]
    (block, *_) = model_of(config).layers
    tokens = tokens_for(mask, config.width)
    with torch.no_grad():
        added = block(tokens, Places.of(index_of(mask)))
        weights = dict(block.state_dict())
        for found, sequence in zip(added, tokens, strict=True):
            expected = by_the_book(weights, config, sequence, mask)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_is_the_sum_of_its_blocks(name: str) -> None:
    config = CONFIGS[name]
    encoder = model_of(config)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    mask = np.ones((4, 4), np.bool_)
    with torch.no_grad():
        weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
        residual = nn.functional.conv2d(images, weight, bias, 4).flatten(2).transpose(1, 2)
        if config.position == "learned":
            residual = residual + encoder.pos_embed
        for block in encoder.layers:
            weights = dict(block.state_dict())
            added = [by_the_book(weights, config, sequence, mask) for sequence in residual]
            residual = residual + torch.stack(added)
        weights = dict(encoder.state_dict())
        vector = _normed(weights, "norm_f", residual).mean(1)
        expected = vector @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(encoder(images), expected, rtol=1e-10, atol=1e-10)


def published(shared: Path) -> dict[str, Any]:
    cases: dict[str, Any] = torch.load(shared / "fixtures/vmamba_ss2d.pt", weights_only=True)[
        "cases"
    ]
    return cases


def config_of(given: dict[str, Any], width: int, depth: int = 1) -> VisionMambaConfig:
    """The configuration of a stage of VMamba, from its own."""
    return replace(
        SMALL,
        width=width,
        depth=depth,
        state=given.get("ssm_d_state", given.get("d_state")),
        expand=int(given["ssm_ratio"]),
        mlp_ratio=given.get("mlp_ratio", 0.0),
        gate=given["forward_type"] == "v0",
    )


def grid_of(image: Tensor) -> Places:
    """The places of all pixels of an image, shape (b, channel, row, column)."""
    return Places.of(index_of(np.ones(image.shape[2:], np.bool_)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ss2d_v05_noz", "ss2d_v05_noz_ratio2", "ss2d_v0"])
def test_published_code_scans_alike(shared: Path, name: str, dtype: torch.dtype) -> None:
    case = published(shared)[name]
    op = CrossBlock(config_of(case["config"], case["config"]["d_model"])).op
    op.load_state_dict(case["model"])
    image, expected = case["input"], case["output"]
    exact = dtype == torch.float64 and case["output_f64"] is not None
    expected = case["output_f64"] if exact else expected.to(dtype)
    if not case["config"]["channel_first"]:
        image, expected = image.permute(0, 3, 1, 2), expected.permute(0, 3, 1, 2)
    places = grid_of(image)
    with torch.no_grad():
        op.to(dtype)
        tokens = image.to(dtype).flatten(2).transpose(1, 2)
        x = nn.functional.pad(op.project(tokens), (0, 0, 0, 1))
        u = op.convolve(x, places.neighbours)
        y = op.scan(u, 0)[0] + op.scan(u, 2)[0]
        v = u[:, places.columns]
        y = y + (op.scan(v, 1)[0] + op.scan(v, 3)[0])[:, places.rank]
        out = op.read_out(y, tokens).transpose(1, 2).view_as(expected)
    bound = 1e-9 if exact else 1e-5
    torch.testing.assert_close(out, expected, rtol=bound, atol=bound)


def vssm(case: dict[str, Any], image: Tensor) -> Tensor:
    """The published hierarchical net, its blocks ours: what lies between them is only convolved."""
    w = {name: tensor.to(image.dtype) for name, tensor in case["model"].items()}
    given = case["config"]
    first = given["patchembed_version"] == "v1"

    def normed(x: Tensor, name: str) -> Tensor:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        x = nn.functional.layer_norm(x.movedim(1, -1), weight.shape, weight, bias)
        return x.movedim(-1, 1)

    def convolved(x: Tensor, name: str, **options: int) -> Tensor:
        return nn.functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    if first:
        x = normed(convolved(image, "patch_embed.0", stride=4), "patch_embed.2")
    else:
        x = normed(convolved(image, "patch_embed.0", stride=2, padding=1), "patch_embed.2")
        x = convolved(nn.functional.gelu(x), "patch_embed.5", stride=2, padding=1)
        x = normed(x, "patch_embed.7")
    for stage, depth in enumerate(given["depths"]):
        encoder = VisionMamba(config_of(given, x.shape[1], depth)).to(x.dtype)
        prefix = f"layers.{stage}.blocks."
        encoder.layers.load_state_dict(
            {name.removeprefix(prefix): t for name, t in w.items() if name.startswith(prefix)}
        )
        places, tokens = grid_of(x), x.flatten(2).transpose(1, 2)
        for block in encoder.layers:
            tokens = tokens + block(tokens, places)
        x = tokens.transpose(1, 2).reshape(x.shape)
        name = f"layers.{stage}.downsample"
        if f"{name}.reduction.weight" in w:
            corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
            x = normed(torch.cat(corners, 1), f"{name}.norm")
            x = nn.functional.conv2d(x, w[f"{name}.reduction.weight"][:, :, None, None])
        elif f"{name}.1.weight" in w:
            x = normed(convolved(x, f"{name}.1", stride=2, padding=1), f"{name}.3")
    vector = normed(x, "classifier.norm").mean((2, 3))
    return vector @ w["classifier.head.weight"].T + w["classifier.head.bias"]


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("vssm_s1", torch.float32, 1e-4),
        ("vssm_s1", torch.float64, 1e-9),
        ("vssm_s2", torch.float32, 1e-4),
        ("vssm_s2", torch.float64, 1e-9),
        ("vssm_v0", torch.float32, 1e-4),
    ],
)
def test_published_nets_are_made_of_these_blocks(
    shared: Path, name: str, dtype: torch.dtype, bound: float
) -> None:
    case = published(shared)[name]
    with torch.no_grad():
        logits = vssm(case, case["input"].to(dtype))
    expected = case["logits"] if dtype == torch.float32 else case["logits_f64"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["published", "both"])
def test_every_layout_of_published_weights_is_loaded(name: str) -> None:
    config = CONFIGS[name]
    expected = model_of(config).layers[0].state_dict()
    later = dict(expected)
    for key in ("x_proj", "dt_projs"):
        tensor = later.pop(f"op.{key}_weight")
        later[f"op.{key}.weight"] = tensor.flatten(0, 1)[..., None]
    for key in ("op.in_proj.weight", "op.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"):
        later[key] = later[key][..., None, None]
    block = CrossBlock(config).double()
    block.load_state_dict(later)
    for key, tensor in block.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_gradients_are_those_of_the_book() -> None:
    config, mask = CONFIGS["both"], np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], np.bool_)
    (block,) = model_of(config).layers
    tokens = tokens_for(mask, config.width, count=1).requires_grad_()
    weights = dict(block.named_parameters())
    leaves = [tokens, *weights.values()]
    found = torch.autograd.grad(block(tokens, Places.of(index_of(mask))).square().sum(), leaves)
    added = by_the_book(weights, config, tokens[0], mask)
    expected = torch.autograd.grad(added.square().sum(), leaves)
    for name, ours, theirs in zip(["tokens", *weights], found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    config = CONFIGS["both"]
    spec = ModelSpec(config, mean=(0.5,) * 3, std=(0.25,) * 3)
    encoder = model_of(config).float()
    save_model(tmp_path / "cross.safetensors", encoder, spec)
    model = load_model(tmp_path / "cross.safetensors")
    assert model.encoder.config == config
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.encoder(images), encoder(images))


@pytest.mark.parametrize("chosen", [{"class_token": "middle"}, {"rope": "tokens"}])
def test_there_is_no_class_token_and_no_rotation(chosen: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place for a class token or rotary positions"):
        replace(SMALL, **chosen)


@pytest.mark.parametrize("index", [None, torch.zeros(2, 2)])
def test_the_places_of_all_tokens_are_needed(index: Tensor | None) -> None:
    with pytest.raises(ValueError, match="row and column of each of the 3 tokens"):
        model_of(SMALL).mix(torch.zeros(1, 3, 8, dtype=torch.float64), index=index)


@pytest.mark.parametrize("index", [[[0, 1], [0, 0]], [[1, 0], [0, 1]], [[0, 1], [0, 1]]])
def test_tokens_come_row_by_row(index: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="row by row"):
        Places.of(torch.tensor(index))


def test_no_tokens_are_no_error() -> None:
    tokens = torch.zeros(1, 0, 8, dtype=torch.float64)
    mixed = model_of(SMALL).mix(tokens, index=torch.zeros(0, 2, dtype=torch.long))
    assert mixed.tokens.shape == (1, 0, 8)


def test_products_in_bfloat16_change_features_by_a_hundredth() -> None:
    if product_precision("cpu", "bfloat16").precision == "float32":
        pytest.skip("needs a CPU with bfloat16 arithmetic")
    encoder = model_of(replace(CONFIGS["both"], width=32)).float()
    mask = np.ones((6, 7), np.bool_)
    tokens, index = tokens_for(mask, 32).float(), index_of(mask)
    with torch.no_grad():
        expected = encoder.mix(tokens, index=index).tokens
        with products_in("bfloat16", "cpu"):
            found = encoder.mix(tokens, index=index).tokens
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 2e-2  # less would be float32
