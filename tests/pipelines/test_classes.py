from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr

from gigavim import head
from gigavim.checkpoint import Model, load_model
from gigavim.config import Resources, RunConfig
from gigavim.pipelines import maps
from gigavim.pipelines.run import run_image
from images import write_classifier, write_scene

CPU = Resources(device="cpu")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_classifier(tmp_path_factory.mktemp("model") / "land.safetensors"))


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_every_patch_has_probabilities_and_the_likeliest_class(
    scene: Path, classifier: Model, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read in many parts: none of them may show.
    monkeypatch.setattr(head, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(maps, "ROWS_AT_ONCE", 70)
    store = tmp_path / "scene.gigavim.zarr"
    config = RunConfig(model=str(classifier.path), mode=mode)  # type: ignore[arg-type]
    summary = run_image(str(scene), store, config, CPU)
    group = zarr.open_group(store, mode="r")
    probs, index = group["tokens/probs"][:].astype(np.float32), group["tokens/grid_index"][:]

    source = "tokens/features" if mode == "whole" else "tiles/vectors"
    with torch.inference_mode():
        logits = classifier.encoder.head(torch.from_numpy(group[source][:]).float())
    expected = logits.softmax(1).numpy()
    if mode == "tiles":
        tile_of = {(r // 8, c // 8): i for i, (r, c) in enumerate(group["tiles/grid_index"][:])}
        expected = expected[[tile_of[r // 8, c // 8] for r, c in index]]
    np.testing.assert_allclose(probs, expected, atol=2e-3)

    labels = group["labels/classify/0"][:]
    sure = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2] > 0.01
    at = tuple(index[sure].T)
    np.testing.assert_array_equal(labels[at], expected[sure].argmax(1) + 1)
    stored = group["maps/classify/0"][:][:, *index.T].T
    np.testing.assert_allclose((stored.astype(float) - 1) / 254, expected, atol=5e-3)
    background = np.ones(labels.shape, bool)
    background[tuple(index.T)] = False
    assert background.any()
    assert not labels[background].any()
    assert not group["maps/classify/0"][:][:, background].any()

    assert summary.geotiff is not None
    with rasterio.open(summary.geotiff) as raster:
        np.testing.assert_array_equal(raster.read(1), labels)
        assert raster.colormap(1)[2] == (0, 255, 0, 255)
    # Patches of 80 m.
    assert summary.area_unit == "km²"
    counts = np.bincount(labels.ravel(), minlength=4)[1:]
    np.testing.assert_allclose(list(summary.class_areas.values()), counts * 0.0064)


def test_the_image_is_what_its_patches_are_on_average(
    scene: Path, classifier: Model, tmp_path: Path
) -> None:
    store = tmp_path / "scene.gigavim.zarr"
    run_image(str(scene), store, RunConfig(model=str(classifier.path), mode="whole"), CPU)
    group = zarr.open_group(store, mode="r")
    features = torch.from_numpy(group["tokens/features"][:]).float()
    with torch.inference_mode():
        mean = classifier.encoder.head(features).mean(0).softmax(0)
    np.testing.assert_allclose(group["image/scores"][:], mean, atol=1e-3)


def test_a_class_token_is_not_asked_about_patches(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_classifier(tmp_path / "token.safetensors", class_token="middle")
    summary = run_image(
        str(scene), tmp_path / "s.gigavim.zarr", RunConfig(model=str(model), mode="whole"), CPU
    )
    assert summary.classes == {}
    assert "--mode tiles makes one" in caplog.text


def test_the_mode_is_the_one_that_the_model_is_better_in(scene: Path, tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "land.safetensors", mode="tiles")
    store = tmp_path / "scene.gigavim.zarr"
    assert run_image(str(scene), store, RunConfig(model=str(model)), CPU).mode == "tiles"
    # Asked for by name, it is the same run.
    asked = run_image(str(scene), store, RunConfig(model=str(model), mode="tiles"), CPU)
    assert asked.status == "skipped"
    whole = RunConfig(model=str(model), mode="whole")
    assert run_image(str(scene), store, whole, CPU, force=True).mode == "whole"


def test_degrees_are_measured_on_the_ellipsoid(classifier: Model, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", crs=None)
    with rasterio.open(scene, "r+") as raster:
        raster.crs = "EPSG:4326"
        raster.transform = rasterio.Affine(1e-4, 0, 9.0, 0, -1e-4, 48.0)
    config = RunConfig(model=str(classifier.path))
    summary = run_image(str(scene), tmp_path / "s.gigavim.zarr", config, CPU)
    # 1e-4 degrees at 48° are 11.12 m by 7.46 m; 28 x 36 patches of 8 px are read.
    assert sum(summary.class_areas.values()) == pytest.approx(
        28 * 36 * 64 * 11.12 * 7.46 / 1e6, rel=2e-3
    )


def test_a_run_at_another_spacing_than_the_model_knows_warns(
    scene: Path, classifier: Model, tmp_path: Path
) -> None:
    def warnings(spacing: float) -> tuple[str, ...]:
        config = RunConfig(model=str(classifier.path), spacing=spacing)
        return run_image(str(scene), tmp_path / f"{spacing}.gigavim.zarr", config, CPU).warnings

    assert warnings(14.0) == ()
    (warning,) = warnings(16.0)
    assert "trained at 10 metre/px and reads 16" in warning
