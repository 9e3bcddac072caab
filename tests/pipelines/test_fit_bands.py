"""Which of an image's bands a model is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio

from gigavim.checkpoint import load_model, save_model
from gigavim.config import RunConfig
from gigavim.errors import BandError
from gigavim.geometry import Window
from gigavim.pipelines.plan import Setup, set_up
from images import write_model

SENTINEL = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip
SENTINEL_NM = {"B02": 490.0, "B03": 560.0, "B04": 665.0, "B05": 705.0, "B08": 842.0, "B11": 1610.0}


def write(path: Path, names: tuple[str, ...], wavelengths: tuple[float, ...] = ()) -> Path:
    """A scene whose first band holds 1, the second 2, and so on."""
    with rasterio.open(
        path, "w", driver="GTiff", height=32, width=32, count=len(names), dtype="uint16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as raster:  # fmt: skip
        for index, name in enumerate(names, 1):
            raster.write(np.full((32, 32), index, np.uint16), index)
            if name:
                raster.set_band_description(index, name)
        for index, nm in enumerate(wavelengths, 1):
            raster.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=str(nm / 1000))
    return path


def model_of(path: Path, bands: tuple[str, ...], *, partial: bool = False, nm: bool = True) -> str:
    """A model that knows its bands by name, and by wavelength."""
    model = load_model(write_model(path.with_name("untold.safetensors"), bands=bands))
    wavelengths = tuple(SENTINEL_NM.get(name) for name in bands) if nm else ()
    spec = dataclasses.replace(model.spec, wavelengths_nm=wavelengths, partial_bands=partial)
    save_model(path, model.encoder, spec)
    return str(path)


def seen(setup: Setup) -> dict[str, int]:
    """Return which band of the file each band of the model is."""
    values = setup.source.read_level(0, Window(0, 0, 1, 1)).values[0, 0]
    slots = (setup.model.spec.bands[slot] for slot in setup.slots)
    return dict(zip(slots, values.tolist(), strict=True))


def test_an_rgb_model_reads_red_green_and_blue_of_thirteen_bands(tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "rgb.safetensors"))
    expected = {"red": 4, "green": 3, "blue": 2}
    named = write(tmp_path / "named.tif", SENTINEL)
    assert seen(set_up(str(named), RunConfig(model=model))) == expected
    nm = (443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1375, 1610, 2190)
    told = write(tmp_path / "told.tif", ("",) * 13, nm)
    assert seen(set_up(str(told), RunConfig(model=model))) == expected


def test_a_model_of_one_sensor_reads_the_like_bands_of_another(tmp_path: Path) -> None:
    bands = ("B02", "B03", "B04", "B08", "B11")
    landsat = write(tmp_path / "LC09_L2SP_1.tif", ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B10"))
    model = model_of(tmp_path / "m.safetensors", bands)
    expected = {"B02": 2, "B03": 3, "B04": 4, "B08": 5, "B11": 6}
    assert seen(set_up(str(landsat), RunConfig(model=model))) == expected


def test_a_band_of_the_same_name_and_another_wavelength_is_another_band(tmp_path: Path) -> None:
    landsat = write(tmp_path / "LC09_L2SP_1.tif", ("B2", "B4", "B5"))
    whole = model_of(tmp_path / "whole.safetensors", ("B02", "B04", "B05"))
    with pytest.raises(BandError, match=r"takes B02 \(490nm\), .* and it has B2 \(482nm\), B4"):
        set_up(str(landsat), RunConfig(model=whole))
    partial = model_of(tmp_path / "partial.safetensors", ("B02", "B04", "B05"), partial=True)
    assert seen(set_up(str(landsat), RunConfig(model=partial))) == {"B02": 1, "B04": 2}
    # The user has the last word.
    chosen = RunConfig(model=whole, bands=("B02=1", "B04=2", "B05=3"))
    assert seen(set_up(str(landsat), chosen)) == {"B02": 1, "B04": 2, "B05": 3}


def test_a_multispectral_model_runs_on_the_bands_there_are_whatever_they_are_called(
    tmp_path: Path,
) -> None:
    scene = write(tmp_path / "s.tif", ("infrared", "a", "red", "b"), (840, 2190, 660, 10_900))
    model = model_of(tmp_path / "m.safetensors", ("B02", "B04", "B08"), partial=True)
    assert seen(set_up(str(scene), RunConfig(model=model))) == {"B04": 3, "B08": 1}


@pytest.mark.parametrize("names", [("VV", "VH", "HH"), ("pan", "x", "y"), ("B9", "B10", "B11")])
def test_bands_that_are_something_else_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    scene = write(tmp_path / "LC08_L1TP_1.tif", names)
    model = str(write_model(tmp_path / "rgb.safetensors"))
    with pytest.raises(BandError, match=r"takes red, green, blue, and it has .*--bands red=1"):
        set_up(str(scene), RunConfig(model=model))


def test_bands_of_which_nothing_is_known_go_to_the_model_in_their_order(tmp_path: Path) -> None:
    scene = write(tmp_path / "s.tif", ("", "", ""))
    model = str(write_model(tmp_path / "rgb.safetensors"))
    assert seen(set_up(str(scene), RunConfig(model=model))) == {"red": 1, "green": 2, "blue": 3}


def test_a_model_that_knows_no_wavelengths_goes_by_its_names(tmp_path: Path) -> None:
    scene = write(tmp_path / "S2A_1.tif", SENTINEL)
    model = model_of(tmp_path / "m.safetensors", ("B04", "nir", "swir1"), nm=False)
    assert seen(set_up(str(scene), RunConfig(model=model))) == {"B04": 4, "nir": 8, "swir1": 12}
