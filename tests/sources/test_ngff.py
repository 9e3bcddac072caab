from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources import Pixels, Source, open_source

IMAGE = np.random.default_rng(0).integers(0, 60_000, (2, 3, 100, 140), np.uint16)
"""Axes z, c, y, x."""


def write(
    path: Path,
    version: str,
    axes: str = "zcyx",
    image: NDArray[Any] = IMAGE,
    labels: tuple[str, ...] = (),
) -> Path:
    """Write a pyramid of two levels at 0.5 µm, by hand and after the specification."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level, step in enumerate((1, 2)):
        small = image[..., ::step, ::step]
        chunks = (1,) * (len(axes) - 2) + (32, 48)
        group.create_array(str(level), data=small, chunks=chunks)
        scale = [0.5 * step if axis in "yx" else 1.0 for axis in axes]
        step_to = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [step_to]})
    kinds = {"t": "time", "c": "channel"}
    units = {axis: {"unit": "micrometer"} for axis in "zyx"}
    named = [{"name": a, "type": kinds.get(a, "space"), **units.get(a, {})} for a in axes]
    ome: dict[str, Any] = {"multiscales": [{"axes": named, "datasets": datasets}]}
    if labels:
        ome["omero"] = {"channels": [{"label": label} for label in labels]}
    if version == "0.4":
        ome["multiscales"][0]["version"] = version
        group.attrs.update(ome)
    else:
        group.attrs["ome"] = ome | {"version": version}
    return path


def read_all(source: Source, level: int = 0) -> Pixels:
    size = source.levels[level]
    return source.read_level(level, Window(0, 0, size.height, size.width))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_both_versions_give_levels_channels_and_spacing(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.zarr", version, labels=("DAPI", "CD3", "CD8"))
    source = open_source(path)
    assert (source.kind, source.reader, source.dtype) == ("slide", "zarr", np.uint16)
    assert source.metadata["OME-Zarr"] == version
    assert [band.name for band in source.bands] == ["DAPI", "CD3", "CD8"]
    assert source.spacing is not None
    assert (source.spacing.y, source.spacing.unit) == (0.5, "µm")
    for level, step in enumerate((1, 2)):
        assert source.levels[level].downsample_y == step
        pixels = read_all(source, level)
        assert pixels.valid.all()
        assert np.array_equal(pixels.values, IMAGE[0, :, ::step, ::step].transpose(1, 2, 0))


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tczyx"])
def test_any_axes_are_read_at_the_first_time_and_depth(tmp_path: Path, axes: str) -> None:
    kept = tuple(slice(None) if axis in axes else 0 for axis in "zcyx")
    image = IMAGE.swapaxes(0, 1)[None] if "t" in axes else IMAGE[kept]
    source = open_source(write(tmp_path / "a.zarr", "0.5", axes, image))
    expected = IMAGE[0].transpose(1, 2, 0)[..., : 3 if "c" in axes else 1]
    assert np.array_equal(read_all(source).values, expected)


def test_channels_can_be_chosen_and_a_window_may_reach_beyond(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", "0.5", labels=("DAPI", "CD3", "CD8"))
    source = open_source(path, bands=["CD8", "nucleus=1"])
    assert [band.name for band in source.bands] == ["CD8", "nucleus"]
    pixels = source.read_level(0, Window(90, 130, 20, 20))
    assert np.array_equal(pixels.values[:10, :10], IMAGE[0, [2, 0], 90:, 130:].transpose(1, 2, 0))
    assert pixels.valid.sum() == 100


def test_the_first_image_of_a_collection_is_opened(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").attrs["bioformats2raw.layout"] = 3
    write(tmp_path / "a.zarr" / "0", "0.5")
    assert np.array_equal(
        read_all(open_source(tmp_path / "a.zarr")).values, IMAGE[0].transpose(1, 2, 0)
    )


@pytest.mark.parametrize(("version", "chunk"), [("0.4", "0/0.1.1.2"), ("0.5", "0/c/0/1/1/2")])
def test_a_chunk_that_cannot_be_decoded_is_masked_and_named_and_the_others_are_read(
    tmp_path: Path, version: str, chunk: str
) -> None:
    path = write(tmp_path / "a.zarr", version)
    (path / chunk).write_bytes(b"this is no chunk")
    pixels = read_all(open_source(path))
    place = np.s_[32:64, 96:140]
    assert [error.window for error in pixels.errors] == [Window(32, 96, 32, 44)]
    assert not pixels.valid[place].any()
    assert not pixels.values[place].any()
    assert pixels.valid.sum() == 100 * 140 - 32 * 44
    expected = IMAGE[0].transpose(1, 2, 0)
    assert np.array_equal(pixels.values[pixels.valid], expected[pixels.valid])


def test_a_zarr_that_holds_no_image_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(SourceError, match=r"a\.zarr is a Zarr, but holds no OME image"):
        open_source(tmp_path / "a.zarr")


def test_an_ome_zarr_that_lacks_a_level_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", "0.5")
    shutil.rmtree(path / "1")
    with pytest.raises(SourceError, match=r"a\.zarr: its array '1' is missing"):
        open_source(path)
