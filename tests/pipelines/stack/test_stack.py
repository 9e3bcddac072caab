"""Several dates of one place as one sequence."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import zarr

from gigavim.checkpoint import load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.encoder import VisionMamba
from gigavim.errors import GigavimError, ModelError, SourceError
from gigavim.exports.result import Result
from gigavim.pipelines.run import run_image
from gigavim.pipelines.stack.plan import plan_stack
from gigavim.pipelines.stack.run import run_stack
from images import ORIGIN, UTM, write_classifier, write_model

CPU = Resources(device="cpu", readers=1)
BANDS = ("blue", "green", "red", "nir")
DAYS = (date(2024, 5, 1), date(2024, 7, 10), date(2024, 9, 2))


def write(
    path: Path,
    seed: int,
    *,
    cloud: tuple[slice, slice] | None = None,
    offset: tuple[int, int] = (0, 0),
    shape: tuple[int, int] = (96, 128),
    side: float = 10,
) -> Path:
    """A scene of noise that differs from place to place; no data under the cloud."""
    y, x = np.mgrid[: shape[0], : shape[1]] + np.array(offset)[:, None, None]
    land = 1000 + 800 * np.sin(x / 17) + 600 * np.cos(y / 13)
    values = land + np.random.default_rng(seed).normal(0, 200, (4, *shape))
    values = np.clip(values, 1, 9000).astype(np.uint16)
    if cloud is not None:
        values[:, *cloud] = 0
    west, north = ORIGIN
    corner = west + side * offset[1], north - side * offset[0]
    with rasterio.open(
        path, "w", driver="GTiff", height=shape[0], width=shape[1], count=4, dtype="uint16",
        nodata=0, crs=UTM, transform=rasterio.Affine(side, 0, corner[0], 0, -side, corner[1]),
    ) as raster:  # fmt: skip
        raster.write(values)
        raster.descriptions = BANDS
    return path


CLOUDS = (None, np.s_[:32, :64], np.s_[16:48, 32:])


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three dates of one place, clouds over different parts of two, over some patches on both."""
    folder = tmp_path_factory.mktemp("season")
    return [
        str(write(folder / f"scene_{day:%Y%m%d}.tif", number, cloud=cloud))
        for number, (day, cloud) in enumerate(zip(DAYS, CLOUDS, strict=True))
    ]


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classifier(tmp_path_factory.mktemp("model") / "land.safetensors"))


def run(
    paths: Sequence[str], store: Path, model: str, resources: Resources = CPU, **more: Any
) -> zarr.Group:
    config = RunConfig(model=model, heads=more.pop("heads", ()), clusters=3)
    summary = run_stack(paths, store, config, resources, **more)
    assert summary.status == "complete"
    return zarr.open_group(store, mode="r")


def test_a_stack_of_one_date_is_a_run(season: list[str], land: str, tmp_path: Path) -> None:
    alone = run(season[1:2], tmp_path / "stack.gigavim.zarr", land)
    config = RunConfig(model=land, clusters=3)
    run_image(season[1], tmp_path / "run.gigavim.zarr", config, CPU)
    single = zarr.open_group(tmp_path / "run.gigavim.zarr", mode="r")
    names = {name for name, item in single.members(None) if isinstance(item, zarr.Array)}
    assert names == {name for name, item in alone.members(None) if isinstance(item, zarr.Array)}
    for name in names:
        np.testing.assert_array_equal(alone[name][...], single[name][...], err_msg=name)
    assert (tmp_path / "stack.classify.tif").read_bytes() == (
        tmp_path / "run.classify.tif"
    ).read_bytes()


@pytest.mark.parametrize("order", ["date", "place"])
def test_features_are_those_of_the_model_on_the_sequence_of_all_dates(
    season: list[str], land: str, tmp_path: Path, order: Any
) -> None:
    store = run(season, tmp_path / "s.gigavim.zarr", land, order=order, per_date=True)
    model = load_model(land)
    # Pixels are read by rasterio here, and nothing of the stack is used to check it.
    tokens: list[tuple[tuple[int, int, int], np.ndarray]] = []
    for number, path in enumerate(season):
        with rasterio.open(path) as raster:
            values = raster.read().astype(np.float64)
        seen = values.any(0)
        mean, std = values[:, seen].mean(1), values[:, seen].std(1)
        for row in range(12):
            for column in range(16):
                there = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                if seen[there].mean() >= 0.5:
                    patch = (values[:, *there] - mean[:, None, None]) / std[:, None, None]
                    place = (row, column)
                    key = (number, *place) if order == "date" else (*place, number)
                    tokens.append((key, (patch * seen[there]).transpose(1, 2, 0)))
    tokens.sort(key=lambda token: token[0])
    patches = torch.from_numpy(np.stack([patch for _, patch in tokens])).float()
    with torch.inference_mode():
        mixed = model.encoder.mix(model.encoder.embed(patches)[None])
    expected = mixed.tokens[0].numpy()
    np.testing.assert_allclose(store["dates/features"][:], expected, atol=4e-3)
    np.testing.assert_allclose(store["image/vector"][:], mixed.vector[0].numpy(), atol=1e-4)
    index, days = store["dates/grid_index"][:], store["dates/date"][:]
    keys = np.column_stack([days, index] if order == "date" else [index, days])
    np.testing.assert_array_equal(keys, [key for key, _ in tokens])
    for cell, feature in zip(
        store["tokens/grid_index"][:], store["tokens/features"][:], strict=True
    ):
        np.testing.assert_allclose(feature, expected[(index == cell).all(1)].mean(0), atol=4e-3)


def test_a_model_that_knows_seasons_is_told_the_day(
    season: list[str], land: str, tmp_path: Path
) -> None:
    plain = load_model(land)
    config = dataclasses.replace(plain.spec.architecture, season=True)
    encoder = VisionMamba(config)
    encoder.load_state_dict(plain.encoder.state_dict(), strict=False)
    spec = dataclasses.replace(plain.spec, architecture=config)
    save_model(tmp_path / "untaught.safetensors", encoder, spec)
    torch.nn.init.normal_(encoder.season_embed.weight)
    save_model(tmp_path / "taught.safetensors", encoder, spec)
    features = {
        name: run(season, tmp_path / f"{name}.gigavim.zarr", model)["tokens/features"][:]
        for name, model in (
            ("plain", land),
            ("untaught", str(tmp_path / "untaught.safetensors")),
            ("taught", str(tmp_path / "taught.safetensors")),
        )
    }
    np.testing.assert_array_equal(features["untaught"], features["plain"])
    assert np.abs(features["taught"] - features["plain"]).mean() > 0.1
    # An image taken on another day is another token; in another year, the same.
    spring, autumn, later = (
        run(
            season[:1], tmp_path / f"{day}.gigavim.zarr", str(tmp_path / "taught.safetensors"),
            dates=[day],
        )["tokens/features"][:]
        for day in (date(2023, 4, 1), date(2023, 10, 1), date(2025, 4, 1))
    )  # fmt: skip
    assert np.abs(spring - autumn).mean() > 0.1
    np.testing.assert_array_equal(spring, later)


def test_what_is_cloud_on_a_date_is_no_token_of_it(
    season: list[str], land: str, tmp_path: Path
) -> None:
    store = run(season, tmp_path / "s.gigavim.zarr", land, per_date=True)
    index, days = store["dates/grid_index"][:], store["dates/date"][:]
    for number, cloud in enumerate(CLOUDS):
        free = np.ones((12, 16), bool)
        if cloud is not None:
            rows, columns = (slice(*(s and s // 8 for s in (c.start, c.stop))) for c in cloud)
            free[rows, columns] = False
        np.testing.assert_array_equal(index[days == number], np.argwhere(free))
        shown = store[f"labels/classify-{DAYS[number]}/0"][:]
        np.testing.assert_array_equal(shown > 0, free)
    assert store["tokens/features"].shape == (12 * 16, 32)
    assert (store["labels/classify/0"][:] > 0).all()


def test_both_orders_hold_the_same_tokens(season: list[str], land: str) -> None:
    config = RunConfig(model=land)
    by_date, by_place = (plan_stack(season, config, order=order) for order in ("date", "place"))
    sets = []
    for stack in (by_date, by_place):
        sequence, days = stack.tokens.sequence.index, stack.date_of_token
        sets.append(np.column_stack([days, sequence]))
    assert (np.diff(sets[0][:, 0]) >= 0).all()
    assert not (np.diff(sets[1][:, 0]) >= 0).all()
    assert len(sets[0]) == len(np.unique(sets[0], axis=0))
    np.testing.assert_array_equal(np.unique(sets[0], axis=0), np.unique(sets[1], axis=0))


@pytest.mark.parametrize("order", ["date", "place"])
def test_a_stack_may_be_cut_anywhere(
    season: list[str], land: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    uncut = run(season, tmp_path / "a.gigavim.zarr", land, order=order)
    # Patches are read two by two, tokens are mixed and put in order in parts of a few.
    monkeypatch.setattr("gigavim.pipelines.plan.block_side", lambda *_: 2)
    monkeypatch.setattr("gigavim.pipelines.stack.features.ROWS_AT_ONCE", 64)
    in_parts = dataclasses.replace(CPU, chunk=37, readers=2)
    cut = run(season, tmp_path / "b.gigavim.zarr", land, in_parts, order=order)
    for name in ("tokens/features", "image/vector", "tokens/probs"):
        np.testing.assert_allclose(cut[name][:], uncut[name][:], atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(cut["labels/classify/0"][:], uncut["labels/classify/0"][:])


def test_a_stack_that_was_stopped_goes_on_and_one_that_is_done_is_skipped(
    season: list[str], land: str, tmp_path: Path
) -> None:
    class Stops:
        left = 4

        def start(self, title: str, tokens: int) -> None:
            pass

        def advance(self, tokens: int, megapixels: float = 0.0) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    config, path = RunConfig(model=land), tmp_path / "s.gigavim.zarr"
    with pytest.raises(KeyboardInterrupt):
        run_stack(season, path, config, CPU, progress=Stops())
    assert run_stack(season, path, config, CPU).resumed
    assert run_stack(season[::-1], path, config, CPU).status == "skipped"
    with pytest.raises(GigavimError, match="another run"):
        run_stack(season, path, config, CPU, order="place")
    other = run(season, tmp_path / "t.gigavim.zarr", land)
    np.testing.assert_array_equal(
        zarr.open_group(path, mode="r")["tokens/features"][:], other["tokens/features"][:]
    )


def test_clusters_of_a_date_are_those_of_the_stack(season: list[str], tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "four.safetensors", bands=BANDS, patch=8))
    path = tmp_path / "s.gigavim.zarr"
    run(season, path, model, per_date=True)
    result = Result.open(path)
    tables = {result.layer(f"clusters-{day}").names for day in DAYS}
    assert tables == {result.layer("clusters").names}
    with rasterio.open(tmp_path / f"s.clusters-{DAYS[0]}.tif") as raster:
        assert raster.transform[2], raster.transform[5] == ORIGIN
        assert raster.shape == (12, 16)


def test_scenes_that_are_cut_differently_are_read_where_all_are(land: str, tmp_path: Path) -> None:
    first = write(tmp_path / "2024-05-01.tif", 0)
    other = write(tmp_path / "2024-06-01.tif", 1, offset=(16, 24))
    stack = plan_stack([str(first), str(other)], RunConfig(model=land))
    assert {plan.setup.grid.shape for plan in stack.plans} == {(10, 13)}
    transforms = {plan.setup.source.transform for plan in stack.plans}
    assert transforms == {(10, 0, ORIGIN[0] + 240, 0, -10, ORIGIN[1] - 160)}


@pytest.mark.parametrize("more", [{"offset": (0.5, 0)}, {"side": 20}])
def test_scenes_on_other_pixels_are_refused_with_the_way_there(
    land: str, tmp_path: Path, more: Any
) -> None:
    first = write(tmp_path / "2024-05-01.tif", 0)
    other = write(tmp_path / "2024-06-01.tif", 1, **more)
    with pytest.raises(
        SourceError, match=r"2024-06-01.tif does not lie .*gdalwarp -t_srs EPSG:32632 -tr 10 10"
    ):
        plan_stack([str(first), str(other)], RunConfig(model=land))


def test_a_date_under_clouds_is_left_out_and_said(
    season: list[str], land: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = write(tmp_path / "20240601.tif", 9, cloud=np.s_[:, :])
    with caplog.at_level(logging.WARNING):
        stack = plan_stack([season[0], str(hidden)], RunConfig(model=land))
    assert stack.dates == DAYS[:1]
    assert "2024-06-01 is left out" in caplog.text


def test_dates_are_known_and_each_comes_once(season: list[str], land: str, tmp_path: Path) -> None:
    config = RunConfig(model=land)
    nameless = str(write(tmp_path / "scene.tif", 0))
    with pytest.raises(SourceError, match=r"scene.tif does not say when .* --dates"):
        plan_stack([season[0], nameless], config)
    told = plan_stack([season[0], nameless], config, dates=[date(2024, 5, 2), date(2024, 5, 1)])
    assert [plan.setup.source.path for plan in told.plans] == [nameless, season[0]]
    with pytest.raises(GigavimError, match="are both of 2024-05-01"):
        plan_stack([season[0], nameless], config, dates=[date(2024, 5, 1)] * 2)
    with pytest.raises(GigavimError, match="1 dates for 2 images"):
        plan_stack(season[:2], config, dates=[date(2024, 5, 1)])


def test_a_model_of_rows_and_columns_reads_no_stack(
    season: list[str], land: str, tmp_path: Path
) -> None:
    config = RunConfig(model=land, order="cross")
    with pytest.raises(ModelError):
        plan_stack(season, config)
