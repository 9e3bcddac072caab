from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import rasterio

from gigavim.errors import GigavimError
from gigavim.exports.result import Result
from gigavim.exports.stac import write_stac
from images import TABLE

pystac = pytest.importorskip("pystac")


def test_an_item_is_valid_and_points_at_its_raster(scene: Result, tmp_path: Path) -> None:
    from pystac.validation import RegisteredValidator

    path = tmp_path / "s.json"
    write_stac(scene, path)
    RegisteredValidator.get_validator().validate_core(
        json.loads(path.read_text(encoding="utf-8")), pystac.STACObjectType.ITEM, "1.1.0"
    )
    item = pystac.Item.from_file(str(path))
    with rasterio.open(tmp_path / item.assets["classes"].href) as raster:
        from rasterio.warp import transform_bounds

        assert item.bbox == pytest.approx(
            transform_bounds(raster.crs, "EPSG:4326", *raster.bounds), abs=1e-6
        )
    assert (tmp_path / item.assets["store"].href).resolve() == scene.store.path.resolve()


def test_its_extensions_say_what_raster_classes_and_model_are(
    scene: Result, tmp_path: Path
) -> None:
    from pystac.extensions.classification import ClassificationExtension
    from pystac.extensions.mlm import MLMExtension
    from pystac.extensions.projection import ProjectionExtension
    from pystac.extensions.raster import RasterExtension

    write_stac(scene, tmp_path / "s.json")
    item = pystac.Item.from_file(str(tmp_path / "s.json"))
    raster = item.assets["classes"]
    assert ProjectionExtension.ext(item).code == "EPSG:32632"
    assert ProjectionExtension.ext(item).shape == [32, 40]
    assert RasterExtension.ext(raster).bands[0].nodata == 0
    none, *classes = ClassificationExtension.ext(raster).classes
    assert none.nodata
    assert [(c.value, c.name) for c in classes] == list(enumerate(TABLE.names, start=1))
    assert classes[1].color_hint == "00FF00"
    model = MLMExtension.ext(item)
    assert model.architecture == "Vision Mamba"
    assert model.input[0].bands == ["blue", "green", "red", "nir"]
    assert model.output[0].result.shape == [1, 32, 40]
    weights = item.assets["model"]
    assert weights.href == f"urn:sha256:{scene.about['model']['weights_sha256']}"
    assert weights.extra_fields["mlm:artifact_type"] == "safetensors.torch.save_file"


def test_the_model_is_described_as_the_extension_asks(scene: Result, tmp_path: Path) -> None:
    schema = pytest.importorskip("stac_model.schema")
    write_stac(scene, tmp_path / "s.json")
    properties = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["properties"]
    described = {key: value for key, value in properties.items() if key.startswith("mlm:")}
    model = schema.MLModelProperties.model_validate(described)
    assert [band for each in model.input for band in each.bands] == ["blue", "green", "red", "nir"]
    with pytest.raises(ValueError, match="mlm:tasks"):
        schema.MLModelProperties.model_validate(described | {"mlm:tasks": ["guessing"]})


def test_an_image_from_the_network_is_named_by_its_address(scene: Result, tmp_path: Path) -> None:
    address = "https://example.org/scenes/S2A.tif"
    about = scene.about | {"source": scene.about["source"] | {"uri": address}}
    write_stac(dataclasses.replace(scene, about=about), tmp_path / "s.json")
    item = pystac.Item.from_file(str(tmp_path / "s.json"))
    assert [link.href for link in item.get_links("derived_from")] == [address]


def test_a_slide_is_no_item(slide: Result, tmp_path: Path) -> None:
    with pytest.raises(GigavimError, match="STAC item lies on Earth"):
        write_stac(slide, tmp_path / "s.json")
    assert not any(tmp_path.iterdir())
