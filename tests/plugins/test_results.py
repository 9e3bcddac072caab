"""Results are asked by places in the viewer's world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gigavim.errors import StoreError
from gigavim.plugins.napari.results import Results, open_results, results_of
from gigavim.plugins.napari.world import layer_affine, world_of_level0
from gigavim.sources import open_source
from images import tissue, write_scene, write_slide
from stores import COLOURS, NAMES, write_store

LABELS = np.array([[1, 2, 0, 3], [0, 3, 3, 1], [2, 0, 0, 1]], np.uint8)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return results on cells of 16 x 8 µm."""
    image = write_slide(tmp_path / "slide.svs", tissue(96, 128))
    store = write_store(
        tmp_path / "slide.gigavim.zarr", image, LABELS, patch=32, source_spacing=(0.5, 0.25)
    )
    return open_results(store)


def test_a_token_is_found_by_any_point_of_its_cell(results: Results) -> None:
    assert results.token_at(0.1, 0.1) == 0
    assert results.token_at(15.9, 7.9) == 0
    assert results.token_at(15.9, 8.1) == 1
    assert results.token_at(47.9, 31.9) == len(results.grid_index) - 1


@pytest.mark.parametrize("point", [(0.1, 16.1), (-0.1, 0.1), (48.1, 0.1), (0.1, 32.1)])
def test_there_is_no_token_on_background_or_beside_the_image(
    results: Results, point: tuple[float, float]
) -> None:
    assert results.token_at(*point) is None


def test_centres_and_corners_lead_back_to_their_tokens(results: Results) -> None:
    tokens = range(len(results.grid_index))
    centres = results.token_centres(tokens)
    assert [results.token_at(*centre) for centre in centres] == list(tokens)
    for token, centre in zip(tokens, centres, strict=True):
        corners = results.cell_corners(token)
        np.testing.assert_allclose(corners.mean(0), centre)
        np.testing.assert_allclose(np.ptp(corners, axis=0), (16, 8))


def test_a_polygon_holds_the_tokens_whose_middle_is_inside(results: Results) -> None:
    left_column = np.array([[-5, 0], [-5, 4.1], [100, 4.1], [100, 0]])
    assert results.tokens_inside([left_column]).tolist() == [0, 6]
    assert results.tokens_inside([left_column - (0, 0.2)]).tolist() == []
    everything = np.array([[-9, -9], [-9, 99], [99, 99], [99, -9]])
    assert results.tokens_inside([left_column, everything]).tolist() == list(range(8))
    # A bow tie, as a hand draws it.
    bow = np.array([[0, 0], [48, 32], [48, 0], [0, 32]])
    assert set(results.tokens_inside([bow])) < set(range(8))
    assert results.tokens_inside([]).tolist() == []


def test_cells_of_overlapping_patches_lie_in_their_middle(tmp_path: Path) -> None:
    image = write_slide(tmp_path / "slide.svs", tissue(96, 128))
    labels = np.ones((6, 8), np.uint8)
    store = write_store(tmp_path / "s.gigavim.zarr", image, labels, patch=32, stride=16)
    results = open_results(store)
    # At 0.5 µm a patch of 32 pixels has its middle at 8 µm.
    np.testing.assert_allclose(results.token_centres([0]), [[8, 8]])
    np.testing.assert_allclose(results.cell_corners(0)[0], (4, 4))
    np.testing.assert_allclose(results.affine("labels/classify") @ (0, 0, 1), (8, 8, 1))


def test_a_scene_lies_where_its_maps_say_though_it_is_gone(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "scene.tif")
    source = open_source(image)
    labels = np.ones((8, 10), np.uint8)
    store = write_store(tmp_path / "scene.gigavim.zarr", image, labels, patch=32)
    image.unlink()
    results = open_results(store)
    assert source.spacing is not None
    np.testing.assert_allclose(results.world, world_of_level0(source.spacing, source.transform))
    assert results.unit == "metre"
    assert not results.has_image


def test_classes_have_names_and_colours_and_maps_their_ranges(results: Results) -> None:
    assert results.heads == ("classify",)
    assert results.classes("classify") == (NAMES, COLOURS)
    assert results.channels("classify")[1] == ("green", "#00E600", (0.0, 1.0))


def test_results_of_a_newer_version_are_refused_in_words(results: Results) -> None:
    file = results.store.path / "zarr.json"
    marks = json.loads(file.read_text())
    marks["attributes"]["gigavim"]["version"] = "17.2.0"
    file.write_text(json.dumps(marks))
    with pytest.raises(StoreError, match=r"made by GigaVim 17\.2\.0.*pip install -U gigavim"):
        open_results(results.store.path)


def test_what_is_no_store_or_a_damaged_one_is_refused_in_words(
    results: Results, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no GigaVim store"):
        open_results(tmp_path)
    file = results.store.path / "zarr.json"
    marks = json.loads(file.read_text())
    del marks["attributes"]["gigavim"]["spacing"]
    file.write_text(json.dumps(marks))
    with pytest.raises(StoreError, match="lacks 'spacing'"):
        open_results(results.store.path)


def test_another_image_is_not_taken_for_the_one_that_has_moved(
    results: Results, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.svs"
    Path(results.source).rename(moved)
    assert open_results(results.store.path, moved).source == str(moved)
    other = write_slide(tmp_path / "other.svs", tissue(96, 128, seed=1))
    with pytest.raises(StoreError, match="is not the image"):
        open_results(results.store.path, other)


def test_the_results_of_a_layer_are_opened_anew_when_they_change(results: Results) -> None:
    class Layer:
        def __init__(self, store: str | None) -> None:
            ours = {"kind": "image", "head": None, "store": store, "source": results.source}
            self.metadata = {"gigavim": ours}

    layer = Layer(str(results.store.path))
    first = results_of(layer)
    assert first is not None
    assert results_of(layer) is first
    (results.store.path / "zarr.json").touch()
    assert results_of(layer) is not first
    assert results_of(Layer(None)) is None


def test_the_corner_of_an_image_is_half_a_pixel_before_its_first_centre() -> None:
    placed = layer_affine(np.diag([0.5, 0.25, 1]), cell=(16, 16), corner=(8, 8))
    np.testing.assert_allclose(placed @ (-0.5, -0.5, 1), (4, 2, 1))
