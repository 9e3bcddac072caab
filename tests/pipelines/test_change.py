"""What changed between two dates, in scenes where we know it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from gigavim.cli import app
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.exports.result import Result
from gigavim.pipelines.change import map_change
from gigavim.pipelines.export import export
from gigavim.pipelines.run import run_image
from images import ORIGIN, UTM

CPU = Resources(device="cpu", readers=1)
BANDS = ("blue", "green", "red", "nir")
PASTED = np.s_[64:104, 80:136]
CLOUD = np.s_[:24, :]


def write(path: Path, *, later: bool = False, west: float = ORIGIN[0]) -> Path:
    """Fields of three kinds; later in another light, with a part pasted over and a cloud."""
    fields = np.random.default_rng(0).integers(0, 3, (10, 12)).repeat(16, 0).repeat(16, 1)
    kinds = np.array([[900, 700, 400, 200], [500, 800, 600, 4000], [1500, 1700, 2100, 2600]])
    values = kinds[fields].astype(np.float64)
    if later:
        values[PASTED] = kinds[(fields[PASTED] + 1) % 3]
        values = values * (1.2, 0.9, 1.1, 1.3) + (100, 0, 50, 200)
    values += np.random.default_rng(int(later) + 1).normal(0, 40, values.shape)
    values = np.clip(values, 1, None)
    if later:
        values[CLOUD] = 0
    with rasterio.open(
        path, "w", driver="GTiff", height=160, width=192, count=4, dtype="uint16", nodata=0,
        crs=UTM, transform=rasterio.Affine(10, 0, west, 0, -10, ORIGIN[1]),
    ) as raster:  # fmt: skip
        raster.write(values.astype(np.uint16).transpose(2, 0, 1))
        raster.descriptions = BANDS
    return path


def ran(image: Path, **config: object) -> Path:
    store = image.with_suffix(".gigavim.zarr")
    run_image(str(image), store, RunConfig(heads=("features",), **config), CPU)  # type: ignore[arg-type]
    return store


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs by the model that ships for scenes."""
    folder = tmp_path_factory.mktemp("dates")
    return ran(write(folder / "before.tif")), ran(write(folder / "after.tif", later=True))


def test_what_was_pasted_is_found_and_what_was_hidden_has_no_score(
    dates: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "change.gigavim.zarr"
    summary = map_change(*dates, path)
    truth = np.zeros((20, 24), bool)
    truth[8:13, 10:17] = True
    result = Result.open(path)
    assert result.heads()[0] == "change"
    labels = np.asarray(result.layer("change").levels[0][...])
    assert not labels[:3].any()
    assert labels[3:].all()
    found = labels[3:] == 2
    assert (found & truth[3:]).sum() >= 0.9 * truth.sum()
    assert (found & truth[3:]).sum() >= 0.5 * found.sum()  # neighbours feel it too
    assert summary.cells == 17 * 24
    assert summary.changed == pytest.approx(found.mean())
    assert summary.changed_area == pytest.approx(found.sum() * 0.0064, rel=0.01)
    scores = zarr.open_group(path, mode="r")["maps/change_score/0"][0]
    np.testing.assert_array_equal(np.isnan(scores), labels == 0)
    assert roc_auc_score(truth[3:].ravel(), scores[3:].ravel()) > 0.98
    np.testing.assert_array_equal(scores > summary.threshold, labels == 2)


def test_maps_of_change_lie_on_the_land(dates: tuple[Path, Path], tmp_path: Path) -> None:
    summary = map_change(*dates, tmp_path / "change.gigavim.zarr", threshold=0.5)
    for name in (summary.geotiff, summary.score_geotiff):
        assert name is not None
        with rasterio.open(name) as raster:
            assert raster.crs == UTM
            assert tuple(raster.transform)[:6] == (80, 0, ORIGIN[0], 0, -80, ORIGIN[1])
            there = raster.read(1, masked=True)
        assert there.mask[:3].all()
        assert not there.mask[3:].any()
    assert summary.overlay is not None
    assert Path(summary.overlay).exists()
    assert "changed" in export(tmp_path / "change.gigavim.zarr", "geojson").read_text()


def test_nothing_changed_between_a_run_and_itself(dates: tuple[Path, Path], tmp_path: Path) -> None:
    summary = map_change(dates[0], dates[0], tmp_path / "none.gigavim.zarr")
    assert (summary.changed, summary.changed_area) == (0, 0)


def test_a_change_that_is_mapped_is_skipped(dates: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "change.gigavim.zarr"
    first = map_change(*dates, path)
    second = map_change(*dates, path)
    assert second.status == "skipped"
    assert second.threshold == first.threshold
    with pytest.raises(GigavimError, match="another run"):
        map_change(*dates, path, threshold=0.3)


def test_results_that_are_not_comparable_are_refused(
    dates: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "change.gigavim.zarr"
    image = write(tmp_path / "other.tif", later=True)
    rgb = ran(image, model="slide-mini", bands=("red", "green", "blue"))
    with pytest.raises(GigavimError, match=r"models scene-mini and slide-mini .* one --model"):
        map_change(dates[0], rgb, path)
    fewer = ran(write(tmp_path / "fewer.tif"), bands=("red", "nir"))
    with pytest.raises(GigavimError, match="bands blue, green, red, nir and red, nir; run both"):
        map_change(dates[0], fewer, path)
    east = ran(write(tmp_path / "east.tif", west=ORIGIN[0] + 40))
    with pytest.raises(GigavimError, match=r"do not lie on the same cells; .* --bounds"):
        map_change(dates[0], east, path)


def test_two_scenes_are_run_on_what_they_share_and_compared(tmp_path: Path) -> None:
    before = write(tmp_path / "before.tif")
    after = write(tmp_path / "after.tif", later=True, west=ORIGIN[0] + 40)
    output = tmp_path / "out" / "change.gigavim.zarr"
    told = CliRunner().invoke(app, ["change", str(before), str(after), "-o", str(output), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["cells"] == 17 * 24
    assert (tmp_path / "out" / "before.gigavim.zarr").is_dir()
    assert Result.open(output).layer("change").shape == (20, 24)
    mixed = CliRunner().invoke(app, ["change", str(before), str(output)])
    assert mixed.exit_code == 2
