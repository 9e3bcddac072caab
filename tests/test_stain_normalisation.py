from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.sources import open_source
from gigavim.stain_normalisation import (
    LEAST_PIXELS,
    REFERENCE,
    Method,
    StainFrame,
    stain_frame,
    stain_transform,
    tissue_sample,
    transform_between,
)
from images import tissue, write_scene, write_slide

METHODS: tuple[Method, ...] = ("macenko", "reinhard")
WHITE = np.array([0.96, 0.95, 0.95])
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.13, 0.92, 0.37])


def stained(
    haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64], strength: float = 1.0
) -> NDArray[np.uint8]:
    """Twenty thousand pixels of tissue, from pure eosin to pure haematoxylin."""
    random = np.random.default_rng(3)
    mixed = random.beta(0.5, 0.5, 20_000)
    amount = strength * random.uniform(0.4, 1.4, 20_000)
    density = amount[:, None] * (mixed[:, None] * haematoxylin + (1 - mixed[:, None]) * eosin)
    return np.rint(255 * WHITE * np.exp(-density)).astype(np.uint8)


TISSUE = stained(HAEMATOXYLIN, EOSIN)
SEEN = st.lists(st.tuples(*[st.integers(1, 255)] * 3), min_size=1).map(
    lambda rows: np.array(rows, np.uint8)
)


@pytest.mark.parametrize("method", METHODS)
@given(pixels=SEEN)
def test_a_slide_normalised_to_itself_stays_as_it_is(
    method: Method, pixels: NDArray[np.uint8]
) -> None:
    frame = stain_frame(TISSUE, WHITE, method)
    found = transform_between(frame, frame, method)(pixels)
    assert np.abs(found.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("method", METHODS)
def test_weaker_and_bluer_stain_is_undone(method: Method) -> None:
    other = stained(np.array([0.75, 0.62, 0.24]), np.array([0.22, 0.90, 0.38]), strength=0.6)
    undo = transform_between(
        stain_frame(other, WHITE, method), stain_frame(TISSUE, WHITE, method), method
    )
    before = np.abs(other.astype(int) - TISSUE)
    after = np.abs(undo(other).astype(int) - TISSUE)
    assert before.mean() > 20
    assert after.mean() < {"macenko": 2, "reinhard": 8}[method]


def test_macenko_finds_the_stains_that_were_mixed() -> None:
    found = -stain_frame(TISSUE, WHITE, "macenko").axes[:2]
    for stain, axis in zip((HAEMATOXYLIN, EOSIN), found, strict=True):
        cosine = stain @ axis / np.linalg.norm(stain) / np.linalg.norm(axis)
        assert np.degrees(np.arccos(cosine)) < 3


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass(method: Method) -> None:
    own = StainFrame(np.array([0.9, 0.87, 0.9]), *_of(method))
    glass = np.rint(255 * own.white).astype(np.uint8)[None]
    target = own.white if method == "reinhard" else REFERENCE[method].white
    found = transform_between(own, REFERENCE[method], method)(glass)
    assert np.abs(found[0] - 255 * target).max() <= 2


def _of(method: Method) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    frame = stain_frame(TISSUE, WHITE, method)
    return np.log(np.array([0.9, 0.87, 0.9])) if method == "macenko" else frame.origin, frame.axes


@pytest.mark.parametrize("method", METHODS)
def test_a_transform_may_travel_and_takes_any_window(method: Method) -> None:
    frame = stain_frame(TISSUE, WHITE, method)
    change = transform_between(frame, REFERENCE[method], method)
    there = pickle.loads(pickle.dumps(change))
    window = TISSUE.reshape(100, 200, 3)
    whole = change(window)
    assert whole.shape == window.shape
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(there(window[10:20, 5:9]), whole[10:20, 5:9])


@pytest.mark.parametrize("method", METHODS)
def test_little_tissue_and_a_single_colour_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="pixels of tissue"):
        stain_frame(TISSUE[: LEAST_PIXELS - 1], WHITE, method)
    plain = np.full((20_000, 3), (180, 90, 150), np.uint8)
    with pytest.raises(ValueError, match="colour"):
        stain_frame(plain, WHITE, method)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_slide_is_left_alone_with_a_warning(
    method: Method, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = write_slide(tmp_path / "empty.svs", np.full((512, 512, 3), 242, np.uint8))
    assert stain_transform(open_source(empty), method) is None
    assert "left as it is" in caplog.text


def test_what_is_no_stained_slide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="8-bit red, green and blue"):
        stain_transform(open_source(write_scene(tmp_path / "scene.tif")), "macenko")
    dark = 255 - tissue(512, 512)
    with pytest.raises(SourceError, match="fluorescent"):
        stain_transform(open_source(write_slide(tmp_path / "dark.svs", dark)), "reinhard")


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_the_slide_it_is_named_after(shared: Path, method: Method) -> None:
    source = open_source(shared / "data/slides/CMU-1-Small-Region.svs")
    found = stain_frame(*tissue_sample(source), method)
    np.testing.assert_allclose(found.axes, REFERENCE[method].axes, atol=2e-3)
    np.testing.assert_allclose(found.origin, REFERENCE[method].origin, atol=2e-3)
