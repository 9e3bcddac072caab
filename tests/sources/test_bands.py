from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from gigavim.errors import BandError
from gigavim.geometry import Window
from gigavim.sources import Band, open_source
from gigavim.sources.bands import LANDSAT_7_NM, LANDSAT_8_NM, SENTINEL_2_NM, match_bands

SENTINEL = ("B01", "B02", "B03", "B04", "B05", "B08", "B8A", "B11")


def write(path: Path, names: tuple[str, ...]) -> Path:
    """A scene whose first band holds 1, the second 2, and so on."""
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=4, count=len(names), dtype="uint16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as raster:  # fmt: skip
        for index, name in enumerate(names, 1):
            raster.write(np.full((4, 4), index, np.uint16), index)
            if name:
                raster.set_band_description(index, name)
    return path


def read(path: Path, bands: list[str] | None) -> tuple[list[str], list[int]]:
    source = open_source(path, bands=bands)
    values = source.read_level(0, Window(0, 0, 1, 1)).values
    return [band.name for band in source.bands], values[0, 0].tolist()


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ("B04", 4), ("b4", 4), ("B_4", 4), ("b 04", 4), ("B8", 6), ("B8A", 7),
        ("red", 4), ("Green", 3), ("blue", 2), ("nir", 6), ("swir1", 8), ("coastal", 1),
        ("nir08", 7),
        ("665nm", 4), ("670 nm", 4), ("864.7nm", 7),
        ("1", 1), ("8", 8),
    ],
)  # fmt: skip
def test_a_band_is_found_by_name_common_name_wavelength_or_index(
    tmp_path: Path, asked: str, index: int
) -> None:
    path = write(tmp_path / "scene.tif", SENTINEL)
    assert read(path, [asked]) == ([SENTINEL[index - 1]], [index])


def test_bands_come_in_the_order_asked_for_and_all_of_them_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", SENTINEL)
    assert read(path, ["nir", "B02", "4"]) == (["B08", "B02", "B04"], [6, 2, 4])
    assert read(path, None) == (list(SENTINEL), [1, 2, 3, 4, 5, 6, 7, 8])


def test_a_band_that_the_file_does_not_name_gets_the_name_the_user_gives_it(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", ("", "", "", "", ""))
    assert read(path, ["red=3", "nir = 4", "1"]) == (["red", "nir", "band 1"], [3, 4, 1])


def test_behind_the_sign_a_number_is_an_index_whatever_the_names_are(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", ("4", "3", "2"))
    assert read(path, ["4", "red=2", "nir=4"]) == (["4", "red", "nir"], [1, 2, 1])


@pytest.mark.parametrize(
    "asked", ["B09", "rededge9", "0", "9", "600nm", "", "red=9", "red=", "nir=x"]
)
def test_an_unknown_band_is_answered_with_what_the_file_has(tmp_path: Path, asked: str) -> None:
    path = write(tmp_path / "scene.tif", SENTINEL)
    with pytest.raises(BandError, match=r"scene.tif has no band .*; it has 1 B01 \(443nm\), 2 B02"):
        open_source(path, bands=[asked])


def test_common_names_need_to_know_the_sensor(tmp_path: Path) -> None:
    unknown = write(tmp_path / "scene.tif", ("B1", "B2", "B3"))
    with pytest.raises(BandError, match=r"no band 'red'; it has 1 B1, 2 B2, 3 B3:"):
        open_source(unknown, bands=["red"])
    landsat = write(tmp_path / "LC08_L1TP_224078_20200518.tif", ("B1", "B2", "B3", "B4", "B5"))
    assert read(landsat, ["red", "nir"]) == (["B4", "B5"], [4, 5])


def test_a_file_of_one_band_is_named_after_it(tmp_path: Path) -> None:
    path = write(tmp_path / "2018-10-13_Sentinel-2B_L1C_B08.tiff", ("",))
    assert read(path, ["nir"]) == (["B08"], [1])


def test_the_colours_of_a_slide_can_be_chosen(slide: Path) -> None:
    window = Window(10, 20, 30, 40)
    everything = open_source(slide).read_level(0, window).values
    source = open_source(slide, bands=["blue", "stain=1"])
    assert [band.name for band in source.bands] == ["blue", "stain"]
    assert np.array_equal(source.read_level(0, window).values, everything[..., [2, 0]])
    with pytest.raises(
        BandError, match=r"slide.svs has no band 'nir'; it has 1 red, 2 green, 3 blue"
    ):
        open_source(slide, bands=["nir"])


def test_a_real_scene_knows_its_bands(shared: Path) -> None:
    path = shared / "data/scenes/sen1floods11_spain/Spain_7370579_S2Hand.tif"
    source = open_source(path, bands=["red", "green", "blue", "nir", "1610nm"])
    assert [band.name for band in source.bands] == ["B4", "B3", "B2", "B8", "B11"]
    assert [band.wavelength_nm for band in source.bands] == [665, 560, 490, 842, 1610]


@pytest.mark.parametrize("other", [LANDSAT_8_NM, LANDSAT_7_NM])
def test_sensors_share_these_bands_and_no_others(other: dict[str, int]) -> None:
    wanted = [Band(f"sentinel {name}", nm) for name, nm in SENTINEL_2_NM.items()]
    available = [Band(f"landsat {name}", nm) for name, nm in other.items()]
    matched = {
        wanted[i].name.split()[1]: available[j].name.split()[1]
        for i, j in match_bands(wanted, available).items()
    }
    if other is LANDSAT_8_NM:
        pairs = {"b1": "b1", "b2": "b2", "b3": "b3", "b4": "b4", "b8a": "b5", "b10": "b9"}
        assert matched == pairs | {"b11": "b6", "b12": "b7"}
    else:
        # Its panchromatic band has its centre at the red edge, and nobody reads it unasked.
        pairs = {"b2": "b1", "b3": "b2", "b4": "b3", "b8": "b4", "b11": "b5", "b12": "b7"}
        assert matched == pairs | {"b5": "b8"}


def test_where_two_bands_would_do_the_same_name_wins_and_then_the_nearer() -> None:
    here = [Band("B8A", 865), Band("B08", 842)]
    assert match_bands([Band("B08", 842), Band("nir", 865)], here) == {0: 1, 1: 0}
    assert match_bands([Band("x", 850), Band("nir08")], here) == {0: 1, 1: 0}
    assert match_bands([Band("B8A", 842)], here) == {0: 0}


def test_common_names_match_without_a_wavelength_on_either_side() -> None:
    assert match_bands([Band("swir1"), Band("red")], [Band("Red"), Band("swir16")]) == {0: 1, 1: 0}
    assert match_bands([Band("red", 665)], [Band("red")]) == {0: 0}
    assert match_bands([Band("red")], [Band("B05", 705), Band("VV"), Band("1")]) == {}
