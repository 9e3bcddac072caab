from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio

from gigavim import models
from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.pipelines.run import run_image
from gigavim.pipelines.suitable import (
    chosen_model,
    default_model,
    holds_reflectance,
    misfits,
    pixel_side,
)
from gigavim.sources import open_source
from gigavim.store import ResultStore
from images import UTM, tissue, write_model, write_scene, write_slide

STAIN = ((0.2, 0.35), (0.4, 0.6), (0.15, 0.3))
"""Of the slide that `images.tissue` paints."""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All shipped models, small."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("slide-mini", "scene-mini", "landcover", "nuclei"):
        write_model(folder / f"{name}.safetensors")
    model = load_model(folder / "nuclei.safetensors")
    spec = ModelSpec(model.spec.architecture, mean=model.spec.mean, std=model.spec.std, stain=STAIN)
    save_model(folder / "nuclei.safetensors", model.encoder, spec)
    monkeypatch.setattr(models, "WEIGHTS", folder)
    return folder


def write_raster(
    path: Path, *, bands: int = 3, metres: float = 10.0, crs: str = UTM, dtype: str = "uint8"
) -> Path:
    image = np.random.default_rng(0).integers(1, 255, (bands, 64, 64)).astype(dtype)
    y = 48.0 if crs == "EPSG:4326" else 5_300_000.0
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=64, count=bands, dtype=dtype, crs=crs,
        transform=rasterio.Affine(metres, 0, 9, 0, -metres, y),
        photometric="RGB" if bands == 3 else "MINISBLACK",
    ) as raster:  # fmt: skip
        raster.write(image)
        raster.descriptions = ("red", "green", "blue", "nir")[:bands]
    return path


@pytest.mark.parametrize(
    ("raster", "name"),
    [
        ({}, "landcover"),
        ({"metres": 5.0}, "landcover"),
        ({"metres": 20.0}, "landcover"),
        ({"metres": 4.0}, "scene-mini"),
        ({"metres": 30.0}, "scene-mini"),
        ({"bands": 4}, "scene-mini"),
        ({"dtype": "uint16"}, "scene-mini"),
        ({"crs": "EPSG:4326", "metres": 1e-4}, "landcover"),  # 11 m by 7 m
        ({"crs": "EPSG:4326", "metres": 1e-3}, "scene-mini"),
    ],
)
def test_land_cover_is_told_of_bytes_of_red_green_and_blue_near_ten_metres(
    weights: Path, tmp_path: Path, raster: dict[str, object], name: str
) -> None:
    path = write_raster(tmp_path / "scene.tif", **raster)  # type: ignore[arg-type]
    assert default_model(open_source(path)) == name


def test_the_spacing_that_is_asked_for_counts(weights: Path, tmp_path: Path) -> None:
    source = open_source(write_raster(tmp_path / "scene.tif", metres=10.0))
    assert default_model(source, spacing=20.0) == "landcover"
    assert default_model(source, spacing=60.0) == "scene-mini"


@pytest.mark.parametrize(
    ("mpp", "turned", "name"),
    [
        (0.25, False, "nuclei"),
        (0.5, False, "nuclei"),
        (1.0, False, "slide-mini"),
        (0.25, True, "slide-mini"),
    ],
)
def test_nuclei_are_looked_for_in_fine_slides_of_the_stain_that_is_known(
    weights: Path, tmp_path: Path, mpp: float, turned: bool, name: str
) -> None:
    image = tissue(512, 512)
    if turned:  # what took green takes red
        image = np.ascontiguousarray(image[..., [1, 0, 2]])
    slide = write_slide(tmp_path / "slide.svs", image, mpp=mpp)
    assert default_model(open_source(slide)) == name


def test_without_the_trained_models_the_small_ones_are_taken(weights: Path, tmp_path: Path) -> None:
    (weights / "landcover.safetensors").unlink()
    (weights / "nuclei.safetensors").unlink()
    assert default_model(open_source(write_raster(tmp_path / "s.tif"))) == "scene-mini"
    slide = write_slide(tmp_path / "slide.svs", tissue(256, 256), mpp=0.25)
    assert default_model(open_source(slide)) == "slide-mini"


def test_a_pixel_in_degrees_has_a_side_in_metres(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", crs="EPSG:4326", metres=1e-4)
    assert pixel_side(open_source(path)) == pytest.approx((11.12 * 7.46) ** 0.5, rel=1e-3)


def test_what_a_model_does_not_know_of_an_image_is_said(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "m.safetensors", spacing=None))
    slots = (0, 1, 2)
    path = write_raster(tmp_path / "plain.tif")
    assert list(misfits(open_source(path), model.spec, slots, 1.0)) == []
    path = write_raster(tmp_path / "deep.tif", dtype="uint16")
    (values,) = misfits(open_source(path), model.spec, slots, 1.0)
    assert values.startswith("its values are uint16, and the model was trained on 0 to 255")
    path = write_scene(tmp_path / "other.tif")
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = ("a", "b", "c", "d")
    four = load_model(
        write_model(tmp_path / "four.safetensors", bands=("blue", "green", "red", "nir"))
    )
    (bands,) = misfits(open_source(path), four.spec, (0, 1, 2, 3), 1.0)
    assert "are taken for blue, green, red, nir, in this order" in bands


def write_reflectance(path: Path, *, scaled: bool = True, named: bool = True) -> Path:
    """Seven bands of Sentinel-2 as counts of 1e-4, some brighter than white."""
    names = ("B02", "B03", "B04", "B08", "B8A", "B11", "B12")
    counts = np.random.default_rng(0).integers(1, 4000, (7, 64, 64)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=64, count=7, dtype="uint16", crs=UTM,
        transform=rasterio.Affine(10, 0, 9, 0, -10, 5_300_000),
    ) as raster:  # fmt: skip
        raster.write(counts)
        if named:
            raster.descriptions = names
        if scaled:
            raster.scales = (1e-4,) * 7
    return path


def set_white(path: Path, white: float) -> Path:
    model = load_model(path)
    save_model(path, model.encoder, dataclasses.replace(model.spec, white=white))
    return path


def test_reflectances_are_known_from_counts(tmp_path: Path) -> None:
    assert holds_reflectance(open_source(write_reflectance(tmp_path / "r.tif")))
    counts = write_reflectance(tmp_path / "c.tif", scaled=False)
    assert not holds_reflectance(open_source(counts))
    nameless = write_reflectance(tmp_path / "n.tif", named=False)
    assert not holds_reflectance(open_source(nameless))
    named_by_user = ["red=3", "green=2", "blue=1"]
    assert holds_reflectance(open_source(nameless, bands=named_by_user))
    assert not holds_reflectance(open_source(counts, bands=named_by_user))
    assert not holds_reflectance(open_source(nameless, bands=["red=3", "green=2", "lwir11=1"]))


def test_land_cover_is_told_of_reflectances_by_a_model_that_knows_what_white_was(
    weights: Path, tmp_path: Path
) -> None:
    source = open_source(write_reflectance(tmp_path / "r.tif"))
    assert default_model(source) == "scene-mini"
    set_white(weights / "landcover.safetensors", 0.275)
    assert default_model(source) == "landcover"
    without_red = open_source(source.path, bands=["B02", "B03", "B08"])
    assert default_model(without_red) == "scene-mini"


def test_whoever_chooses_more_bands_than_land_cover_takes_gets_a_model_that_takes_them(
    weights: Path, tmp_path: Path
) -> None:
    set_white(weights / "landcover.safetensors", 0.275)
    path = str(write_reflectance(tmp_path / "r.tif"))
    chosen = {
        ("B04", "B03", "B02"): "landcover",
        ("B04", "B03", "B02", "B08"): "scene-mini",
    }
    for bands, name in chosen.items():
        config = RunConfig(bands=bands)
        source = open_source(path, bands=bands)
        assert chosen_model(source, config, "cpu").path.stem == name


def test_counts_without_a_scale_are_answered_with_how_to_name_it(tmp_path: Path) -> None:
    model = load_model(set_white(write_model(tmp_path / "m.safetensors", spacing=None), 0.275))
    counts = write_reflectance(tmp_path / "c.tif", scaled=False)
    source = open_source(counts, bands=["B04", "B03", "B02"])
    (values,) = misfits(source, model.spec, (0, 1, 2), 1.0)
    assert values.endswith("or name their scale in the file: gdal_edit.py -scale 0.0001")


def test_reflectances_in_bands_without_names_are_answered_with_how_to_name_them(
    tmp_path: Path,
) -> None:
    model = load_model(set_white(write_model(tmp_path / "m.safetensors", spacing=None), 0.275))
    nameless = write_reflectance(tmp_path / "n.tif", named=False)
    source = open_source(nameless, bands=["3", "2", "1"])
    values = list(misfits(source, model.spec, (0, 1, 2), 1.0))[-1]
    assert values.endswith("or name the bands of reflectances: --bands red=3,green=2,blue=1")


def test_a_model_of_bytes_sees_reflectances_as_the_bytes_they_would_have_been(
    tmp_path: Path,
) -> None:
    model = set_white(write_model(tmp_path / "m.safetensors"), 0.275)
    scene = write_reflectance(tmp_path / "r.tif")
    with rasterio.open(scene) as raster:
        red, green, blue = raster.read([3, 2, 1]).astype(np.float64)
    picture = tmp_path / "b.tif"
    with rasterio.open(
        picture, "w", driver="GTiff", height=64, width=64, count=3, dtype="uint8", crs=UTM,
        transform=raster.transform, photometric="RGB",
    ) as raster:  # fmt: skip
        # gdal_translate -ot Byte -scale 0 2750 0 255
        counts = np.stack([red, green, blue])
        raster.write(np.rint(np.clip(counts / 2750, 0, 1) * 255).astype(np.uint8))
    features = []
    for image in (scene, picture):
        path = image.with_suffix(".gigavim.zarr")
        config = RunConfig(model=str(model), heads=("features",))
        summary = run_image(str(image), path, config, Resources(device="cpu", readers=1))
        assert summary.warnings == ()
        features.append(ResultStore.open(path).values("tokens/features").astype(np.float64))
    np.testing.assert_allclose(*features, atol=0.02)
    assert features[0].std() > 0.1
