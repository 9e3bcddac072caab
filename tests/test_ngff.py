from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05
import pytest
import rasterio
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from gigavim.geometry import Spacing
from gigavim.georeference import Registration
from gigavim.ngff import write_image, write_label

NAMES = ("stroma", "tumour")
COLOURS = ((230, 159, 0), (0, 114, 178))
SLIDE = Registration(64.0, 32.0, Spacing(0.25, 0.5, "µm", "aperio.MPP"))
SCENE = Registration(
    16.0,
    16.0,
    Spacing(10.0, 10.0, "metre", "transform"),
    crs=rasterio.crs.CRS.from_epsg(32633).to_wkt(),
    transform=(10.0, 0.0, 5e5, 0.0, -10.0, 6e6),
)


@pytest.fixture(params=[SLIDE, SCENE], ids=["slide", "scene"])
def registration(request: pytest.FixtureRequest) -> Registration:
    registration: Registration = request.param
    return registration


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """Blocks of 32 cells, of 600 x 401: three levels, and odd edges."""
    blocks = np.random.default_rng(0).integers(0, 3, (19, 13), np.uint8)
    return blocks.repeat(32, 0).repeat(32, 1)[:600, :401]


def layers(path: Path) -> list[Any]:
    """Open a folder as napari does; napari-ome-zarr 0.9 and 0.10 leave the translation out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from napari_ome_zarr import napari_get_reader
    reader = napari_get_reader(str(path))
    assert reader is not None
    return list(reader(str(path)))


def levels(group: Any) -> list[tuple[NDArray[Any], list[float], list[float]]]:
    """Read a pyramid by its metadata alone: values, scale and translation of each level."""
    found = []
    ome: Any = group.attrs["ome"]
    for dataset in ome["multiscales"][0]["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        array = group[dataset["path"]]
        found.append((np.asarray(array[:]), scale["scale"], translation["translation"]))
    return found


def test_a_class_map_is_valid_and_carries_names_and_colours(
    tmp_path: Path, labels: NDArray[np.uint8], registration: Registration
) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "tissue", labels, NAMES, COLOURS, registration)
    write_label(root, "classes", labels, NAMES, COLOURS, registration)
    said: Any = ome_zarr_models.v05.ImageLabel.from_zarr(root["classes"]).attributes.ome.image_label
    assert [(c.label_value, c.rgba[:3]) for c in said.colors] == list(enumerate(COLOURS, 1))
    assert [
        (p["label-value"], p["class"])
        for p in (root["classes"].attrs["ome"]["image-label"]["properties"])
    ] == list(enumerate(NAMES, 1))
    assert root.attrs["ome"] == {"version": "0.5", "labels": ["classes", "tissue"]}


def test_a_labels_group_is_valid(tmp_path: Path, labels: NDArray[np.uint8]) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "classes", labels, NAMES, COLOURS, SLIDE)
    ome_zarr_models.v05.Labels.from_zarr(root)


def test_a_map_is_valid_and_carries_channels(tmp_path: Path, registration: Registration) -> None:
    root = zarr.create_group(tmp_path / "maps")
    values = np.linspace(0, 1, 2 * 300 * 200, dtype=np.float32).reshape(2, 300, 200)
    values[:, :10] = np.nan
    write_image(root, "probs", values, NAMES, COLOURS, registration)
    image: Any = ome_zarr_models.v05.Image.from_zarr(root["probs"])
    axes = image.attributes.ome.multiscales[0].axes
    assert [axis.name for axis in axes] == ["c", "y", "x"]
    assert axes[1].unit == {"µm": "micrometer", "metre": "meter"}[registration.spacing.unit]
    channels: Any = root["probs"].attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == list(NAMES)
    assert [channel["color"] for channel in channels] == ["E69F00", "0072B2"]
    assert channels[0]["window"]["start"] == pytest.approx(values[0, 10, 0])


def test_napari_shows_a_map_with_its_scale_names_and_colours(
    tmp_path: Path, labels: NDArray[np.uint8], registration: Registration
) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "classes", labels, NAMES, COLOURS, registration)
    [(data, how, kind)] = layers(tmp_path / "labels" / "classes")
    assert kind == "labels"
    np.testing.assert_array_equal(np.asarray(data[0]), labels)
    assert [level.shape for level in data] == [(600, 401), (300, 201), (150, 101)]
    assert how["scale"] == list(registration.scale)
    assert how["colormap"][2] == pytest.approx([0, 114 / 255, 178 / 255, 1])
    assert how["properties"]["class"] == list(NAMES)


def test_a_level_covers_what_the_first_covers(
    tmp_path: Path, labels: NDArray[np.uint8], registration: Registration
) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "classes", labels, NAMES, COLOURS, registration)
    found = levels(root["classes"])
    assert len(found) == 3
    for axis, (cell, size) in enumerate(
        [
            (registration.cell_y, registration.spacing.y),
            (registration.cell_x, registration.spacing.x),
        ]
    ):
        for number, (_, scale, translation) in enumerate(found):
            joined = cell * 2**number
            assert scale[axis] == joined * size
            assert translation[axis] == pytest.approx((joined - 1) / 2 * size)
    for number, (values, _, _) in enumerate(found):
        factor = 2**number
        # Blocks of 32 cells stay whole, so every level shows the same blocks in the same place.
        np.testing.assert_array_equal(values, labels[::factor, ::factor])


@given(arrays(np.uint8, (6, 8), elements=st.integers(0, 3)))
def test_a_coarser_label_is_the_most_frequent_of_its_four(labels: NDArray[np.uint8]) -> None:
    wide = np.kron(labels, np.ones((1, 50), np.uint8))
    root = zarr.create_group(zarr.storage.MemoryStore())
    write_label(root, "map", wide, ("a", "b", "c"), ((0, 0, 0),) * 3, SLIDE)
    coarse = levels(root["map"])[1][0]
    assert coarse.shape == (3, 200)
    for (row, column), label in np.ndenumerate(coarse):
        four = wide[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert (four == label).sum() == np.bincount(four.ravel()).max()


def test_a_coarser_value_is_the_mean_of_what_is_known(tmp_path: Path) -> None:
    values = np.full((1, 3, 300), np.nan, np.float32)
    values[0, 0, 0], values[0, 1, 1] = 1, 3
    values[0, 2, 299] = 5
    root = zarr.create_group(tmp_path / "maps")
    write_image(root, "map", values, NAMES[:1], COLOURS[:1], SLIDE)
    coarse = levels(root["map"])[1][0]
    assert coarse.shape == (1, 2, 150)
    assert (coarse[0, 0, 0], coarse[0, 1, 149]) == (2, 5)
    assert np.isnan(coarse).sum() == coarse.size - 2


def test_a_scene_lies_in_its_crs_for_readers_of_cf_and_of_geozarr(
    tmp_path: Path, labels: NDArray[np.uint8]
) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "classes", labels, NAMES, COLOURS, SCENE)
    group: Any = root["classes"]
    first = group["0"]
    assert first.metadata.dimension_names == ("y", "x")
    mapping = group[first.attrs["grid_mapping"]].attrs
    numbers = [float(number) for number in mapping["GeoTransform"].split()]
    assert numbers == [5e5, 160, 0, 6e6, 0, -160]
    assert rasterio.crs.CRS.from_wkt(mapping["crs_wkt"]).to_epsg() == 32633
    for name, size in (("y", 600), ("x", 401)):
        assert group[name].shape == (size,)
        assert group[name].metadata.dimension_names == (name,)
    assert (group["x"][-1], group["y"][-1]) == (5e5 + 400.5 * 160, 6e6 - 599.5 * 160)

    for path, factor in (("0", 1), ("overviews/1", 2), ("overviews/2", 4)):
        said = group[path].attrs
        assert said["proj:code"] == "EPSG:32633"
        assert said["spatial:shape"] == list(group[path].shape)
        assert said["spatial:transform"] == [160 * factor, 0, 5e5, 0, -160 * factor, 6e6]


def test_a_map_is_written_again_over_the_old_one(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "labels")
    write_label(root, "map", np.ones((600, 600), np.uint8), NAMES, COLOURS, SCENE)
    write_label(root, "map", np.ones((20, 20), np.uint8), NAMES, COLOURS, SCENE)
    assert len(levels(root["map"])) == 1
    assert root.attrs["ome"] == {"version": "0.5", "labels": ["map"]}
    assert not (tmp_path / "labels" / "map" / "overviews").exists()


@pytest.mark.parametrize(
    "labels", [np.full((2, 2), 3, np.uint8), np.ones((2, 2), np.int32), np.ones(4, np.uint8)]
)
def test_labels_without_a_class_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="uint8 up to 2"):
        write_label(
            zarr.create_group(zarr.storage.MemoryStore()), "m", labels, NAMES, COLOURS, SLIDE
        )


def test_values_without_a_channel_are_refused() -> None:
    root = zarr.create_group(zarr.storage.MemoryStore())
    with pytest.raises(ValueError, match="2 channels"):
        write_image(root, "m", np.ones((3, 2, 2), np.float32), NAMES, COLOURS, SLIDE)
