from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError
from gigavim.mixer import TILE
from gigavim.streamed import DiskScratch, MemoryScratch, Scratch, rows_like, sweeps_of
from gigavim.streamed.cross import INNER_TABLES, mix_cross

SMALL = VisionMambaConfig(
    image_size=16, patch=4, stride=4, width=8, depth=2, state=2, classes=0, class_token="none",
    position="none", norm="layer", block="cross",
)  # fmt: skip
MODELS = {
    "published": replace(SMALL, state=1, expand=1, mlp_ratio=4.0),
    "gated": replace(SMALL, gate=True, depth=3),
    "both": replace(SMALL, gate=True, mlp_ratio=1.5, depth=1, pool="last"),
}

masks = st.one_of(
    arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.integers(1, 90).map(lambda n: np.ones((1, n), np.bool_)),
    st.integers(1, 90).map(lambda n: np.ones((n, 1), np.bool_)),
).filter(lambda mask: mask.any())


def model_of(name: str, dtype: torch.dtype = torch.float64) -> VisionMamba:
    torch.manual_seed(0)
    encoder = VisionMamba(MODELS[name]).to(dtype).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def tokens_for(encoder: VisionMamba, mask: NDArray[np.bool_]) -> Tensor:
    generator = torch.Generator().manual_seed(mask.size)
    shape = (int(mask.sum()), encoder.config.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(rows_like(encoder))


class Killed(BaseException):
    """In place of a signal."""


class DiesWhileWriting(DiskScratch):
    """Fails after so many writes of all such scratches, the last of them half done."""

    left = 0

    def write(self, table: int, start: int, rows: Tensor) -> None:
        DiesWhileWriting.left -= 1
        if DiesWhileWriting.left == 0:
            super().write(table, start, torch.full_like(rows[: len(rows) // 2 + 1], 9e9))
            raise Killed
        super().write(table, start, rows)


def streamed(
    encoder: VisionMamba,
    tokens: Tensor,
    mask: NDArray[np.bool_],
    chunk: int,
    on_chunk: Callable[[int], None] = id,
) -> tuple[Tensor, Tensor]:
    """Features and vector, mixed in memory."""
    like, length = rows_like(encoder), len(tokens)
    residual = MemoryScratch(length, encoder.config.width, chunk, like)
    inner = MemoryScratch(length, encoder.config.inner, chunk, like, tables=INNER_TABLES)
    return features(encoder, tokens, mask, residual, inner, on_chunk)


def streamed_on_disk(
    encoder: VisionMamba,
    tokens: Tensor,
    mask: NDArray[np.bool_],
    chunk: int,
    folder: Path,
    kind: type[DiskScratch] = DiskScratch,
    on_chunk: Callable[[int], None] = id,
) -> tuple[Tensor, Tensor]:
    """The same from the disk."""
    like, rows = rows_like(encoder), len(tokens)
    width, E = encoder.config.width, encoder.config.inner
    with (
        kind(folder / "residual", "a run", rows, width, chunk, like) as residual,
        kind(folder / "inner", "a run", rows, E, chunk, like, tables=INNER_TABLES) as inner,
    ):
        return features(encoder, tokens, mask, residual, inner, on_chunk)


def features(
    encoder: VisionMamba,
    tokens: Tensor,
    mask: NDArray[np.bool_],
    residual: Scratch,
    inner: Scratch,
    on_chunk: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    length = len(tokens)
    # The second half first: tokens come in any order.
    places = np.roll(np.arange(length), length // 2)
    parts = [(part, tokens[part]) for part in np.array_split(places, 2)]
    index = torch.from_numpy(np.argwhere(mask))
    mixed = mix_cross(encoder, parts, index, residual, inner, on_chunk=on_chunk)
    return mixed.tokens(0, length), mixed.vector


def uncut(encoder: VisionMamba, tokens: Tensor, mask: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """What the encoder itself makes of all tokens at once."""
    with torch.inference_mode():
        mixed = encoder.mix(tokens[None], index=torch.from_numpy(np.argwhere(mask)))
        return mixed.tokens[0], mixed.vector[0]


@given(st.sampled_from(sorted(MODELS)), masks, st.integers(1, 100))
@settings(max_examples=60)
def test_rows_and_columns_may_be_cut_anywhere(
    name: str, mask: NDArray[np.bool_], chunk: int
) -> None:
    encoder = model_of(name)
    tokens = tokens_for(encoder, mask)
    found = streamed(encoder, tokens, mask, chunk)
    for ours, expected in zip(found, uncut(encoder, tokens, mask), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("chunk", [700, TILE, 3 * TILE])
def test_thousands_of_tokens_are_mixed_as_one_grid(
    dtype: torch.dtype, bound: float, chunk: int
) -> None:
    encoder = model_of("both", dtype)
    mask = np.random.default_rng(0).random((97, 61)) < 0.8
    tokens = tokens_for(encoder, mask)
    found = streamed(encoder, tokens, mask, chunk)
    for ours, expected in zip(found, uncut(encoder, tokens, mask), strict=True):
        torch.testing.assert_close(ours, expected, rtol=bound, atol=bound)


@given(
    name=st.sampled_from(sorted(MODELS)),
    mask=arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))).filter(np.any),
    chunk=st.integers(5, 40),
    kills=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)
@settings(max_examples=25)
def test_a_killed_run_continues_to_the_same_bits(
    name: str,
    mask: NDArray[np.bool_],
    chunk: int,
    kills: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    encoder, folder = model_of(name), tmp_path_factory.mktemp("scratch")
    tokens = tokens_for(encoder, mask)
    for after in kills:
        DiesWhileWriting.left = after
        try:
            streamed_on_disk(encoder, tokens, mask, chunk, folder, DiesWhileWriting)
        except Killed:
            continue
    found = streamed_on_disk(encoder, tokens, mask, chunk, folder)
    for ours, expected in zip(found, streamed(encoder, tokens, mask, chunk), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("lost", ["residual", "inner"])
def test_half_a_scratch_is_started_over(lost: str, tmp_path: Path) -> None:
    encoder, mask = model_of("gated"), np.ones((6, 7), np.bool_)
    tokens = tokens_for(encoder, mask)
    expected = streamed_on_disk(encoder, tokens, mask, 22, tmp_path)
    shutil.rmtree(tmp_path / lost)
    for ours, theirs in zip(
        streamed_on_disk(encoder, tokens, mask, 22, tmp_path), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_every_sweep_is_told_of_and_those_done_are_not_done_again(tmp_path: Path) -> None:
    encoder, mask = model_of("gated"), np.ones((6, 7), np.bool_)
    tokens = tokens_for(encoder, mask)
    told: list[int] = []
    streamed_on_disk(encoder, tokens, mask, 10, tmp_path, on_chunk=told.append)
    assert sum(told) == 42 * sweeps_of(encoder)
    assert max(told) == 10
    # Other tokens change nothing any more.
    found = streamed_on_disk(encoder, tokens + 1, mask, 10, tmp_path)
    torch.testing.assert_close(found, uncut(encoder, tokens, mask))


def test_a_state_that_is_no_number_stops_the_run_and_says_where() -> None:
    encoder, mask = model_of("gated"), np.ones((4, 5), np.bool_)
    tokens = tokens_for(encoder, mask)
    with torch.no_grad():
        encoder.layers[1].op.dt_projs_bias[1] = torch.nan  # type: ignore[union-attr, index]
    with pytest.raises(ModelError, match=r"layer 2 of 3 .* chunk 1 of 3 along columns;"):
        streamed(encoder, tokens, mask, 7)
