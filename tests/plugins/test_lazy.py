"""Lazy pyramids give what is in the file, and never wait in a window."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.geometry import Window
from gigavim.plugins.napari.lazy import Pyramid, waiting
from gigavim.plugins.napari.pyramids import band_pyramid, rgba_pyramid
from gigavim.plugins.napari.tiles import TileCache
from gigavim.sources import open_source
from gigavim.views.rgb import Stretch
from images import tissue, write_scene, write_slide

SHAPE = 192, 256


def pixels(level: int) -> NDArray[np.int32]:
    """Return numbers that differ everywhere, the same in all levels where they are the same."""
    rows, columns = np.mgrid[: SHAPE[0] : 1 << level, : SHAPE[1] : 1 << level]
    return (rows * 1000 + columns).astype(np.int32)


class Reader:
    """Reads tiles, when it is let, and notes who asked."""

    def __init__(self) -> None:
        self.may_read = threading.Event()
        self.may_read.set()
        self.threads: list[threading.Thread] = []

    def __call__(self, level: int, window: Window) -> tuple[NDArray[Any], Sequence[str]]:
        assert self.may_read.wait(30)
        self.threads.append(threading.current_thread())
        whole = np.zeros((1024, 1024), np.int32)
        known = pixels(level)
        whole[: known.shape[0], : known.shape[1]] = known
        rows = slice(window.y, window.y + window.height)
        return whole[rows, window.x : window.x + window.width], ()


def pyramid(reader: Reader) -> Pyramid:
    return Pyramid(reader, (SHAPE[0] // 4, SHAPE[1] // 4), (64, 64, 32), np.int32)


def until(done: Any) -> None:
    """Wait for threads."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


parts = st.one_of(
    st.integers(-40, 39),
    st.slices(40),
)


@given(rows=parts, columns=parts, level=st.integers(0, 2))
def test_indexing_is_that_of_numpy(rows: Any, columns: Any, level: int) -> None:
    lazy, known = pyramid(Reader()).levels[level], pixels(level)
    np.testing.assert_array_equal(lazy[rows, columns], known[rows, columns])
    np.testing.assert_array_equal(lazy[rows], known[rows])
    np.testing.assert_array_equal(lazy[..., columns], known[..., columns])
    np.testing.assert_array_equal(np.asarray(lazy), known)


def test_a_window_is_shown_something_coarser_at_once_and_the_rest_when_it_is_there() -> None:
    reader = Reader()
    shown, asked = pyramid(reader), []
    np.asarray(shown.levels[2])
    shown.listeners.append(lambda: asked.append(True))
    shown.waits = False
    reader.may_read.clear()
    first = shown.levels[0][10:100, 20:200]
    np.testing.assert_array_equal(first, pixels(2).repeat(4, 0).repeat(4, 1)[10:100, 20:200])
    assert asked
    assert shown.loading
    before = shown.arrivals
    reader.may_read.set()
    until(lambda: not shown.loading)
    assert shown.arrivals > before
    np.testing.assert_array_equal(shown.levels[0][10:100, 20:200], pixels(0)[10:100, 20:200])


def test_a_window_never_reads() -> None:
    reader = Reader()
    shown = pyramid(reader)
    shown.waits = False
    coarsest = np.asarray(shown.levels[2])
    for level in shown.levels:
        level[...]
    until(lambda: not shown.loading)
    assert reader.threads
    assert threading.main_thread() not in reader.threads
    # The array that napari keeps has been filled.
    np.testing.assert_array_equal(coarsest, pixels(2))


def test_a_picture_waits_for_what_it_shows() -> None:
    shown = pyramid(Reader())
    shown.waits = False
    with waiting():
        np.testing.assert_array_equal(shown.levels[0][...], pixels(0))


def test_a_view_that_was_left_is_not_read() -> None:
    reader = Reader()
    shown = pyramid(reader)
    shown.waits = False
    reader.may_read.clear()
    shown.levels[0][...]
    shown.levels[1][:10, :10]
    reader.may_read.set()
    until(lambda: not shown.loading)
    # The threads were at some tiles already; of the twelve, most were never read.
    assert len(reader.threads) <= 6


def test_layers_may_be_copied() -> None:
    level = pyramid(Reader()).levels[0]
    assert copy.deepcopy(level) is level


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = TileCache(250)
    tile = np.zeros(100, np.uint8)
    for row in (0, 1):
        cache.put(1, (0, row, 0), tile)
    assert cache.get(1, (0, 0, 0)) is not None
    cache.put(1, (0, 2, 0), tile)
    assert cache.get(1, (0, 1, 0)) is None
    assert cache.get(1, (0, 0, 0)) is not None
    cache.drop(1)
    assert cache.get(1, (0, 0, 0)) is None


def test_a_slide_of_one_level_gets_coarser_ones_that_are_means(tmp_path: Path) -> None:
    image = tissue(300, 700).repeat(3, 0).repeat(3, 1)[:898, :2098]
    source = open_source(write_slide(tmp_path / "slide.svs", image))
    levels = rgba_pyramid(source, Stretch((0, 1, 2), None, None)).levels
    assert [level.shape for level in levels] == [
        (900, 2100, 4), (450, 1050, 4), (225, 525, 4)
    ]  # fmt: skip
    finest, coarsest = (np.asarray(level).astype(float) for level in (levels[0], levels[2]))
    mean = finest.reshape(225, 4, 525, 4, 4).mean((1, 3))
    assert np.abs(coarsest - mean)[:224, :524].max() <= 1
    assert (finest[898:, :, 3] == 0).all()


def test_a_scene_is_transparent_and_its_bands_unknown_where_it_has_no_data(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif")
    source = open_source(path)
    stretch = Stretch.of(source.read_level(0, Window(0, 0, 256, 320)), source.bands)
    (level,) = rgba_pyramid(source, stretch).levels
    alpha = np.asarray(level)[..., 3]
    assert (alpha[:16] == 0).all()
    assert (alpha[16:240, 16:304] == 255).all()
    (band,) = band_pyramid(open_source(path, bands=["nir"])).levels
    values = np.asarray(band)
    np.testing.assert_array_equal(np.isnan(values), alpha == 0)
    assert values[100, 200] == pytest.approx(4000, abs=70)
