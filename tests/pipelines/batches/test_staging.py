from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import images
from gigavim.pipelines.batches.staging import Stage, StagePlan, image_files


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "network"
    folder.mkdir()
    tissue = images.tissue(256, 256)
    return [images.write_slide(folder / f"{name}.svs", tissue) for name in "ab"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_copy_is_there_while_it_is_read_and_the_next_is_made(
    tmp_path: Path, slides: list[Path]
) -> None:
    local = tmp_path / "local"
    stage = Stage(StagePlan(local))
    a, b = map(str, slides)
    with stage.holding(a, b) as copy:
        assert copy is not None
        assert copy.is_relative_to(local)
        assert copy.read_bytes() == slides[0].read_bytes()
        while len(files_in(local)) < 2:
            pass
    assert files_in(local) == ["b.svs"]
    with stage.holding(b, None) as copy:
        assert copy is not None
        assert copy.read_bytes() == slides[1].read_bytes()
    assert list(local.iterdir()) == []


def test_a_copy_that_is_not_wanted_any_more_goes(tmp_path: Path, slides: list[Path]) -> None:
    stage = Stage(StagePlan(tmp_path / "local"))
    a, b = map(str, slides)
    with stage.holding(a, b):
        pass
    with stage.holding(a, None):
        assert files_in(tmp_path / "local") == ["a.svs"]


def test_without_room_an_image_is_read_where_it_lies(
    tmp_path: Path, slides: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    limit = slides[0].stat().st_size + 10
    stage = Stage(StagePlan(tmp_path / "local", limit))
    a, b = map(str, slides)
    with caplog.at_level(logging.WARNING), stage.holding(a, b) as copy:
        assert copy is not None
        while "b.svs: read where it lies" not in caplog.text:
            pass
    # With the first one gone, there is room.
    with stage.holding(b, None) as copy:
        assert copy is not None
    with Stage(StagePlan(tmp_path / "local", 10)).holding(a, None) as copy:
        assert copy is None


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
def test_a_full_disk_costs_no_image(
    tmp_path: Path, slides: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stage = Stage(StagePlan(tmp_path / "local"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with stage.holding(str(slides[0]), None) as copy:
            assert copy is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be copied: " in caplog.text
    assert files_in(tmp_path / "local") == []


def test_what_a_killed_worker_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left, own = tmp_path / f"gigavim-{child.pid}", tmp_path / f"gigavim-{os.getpid()}"
    for folder in (left, own):
        folder.mkdir()
        (folder / "part.svs").touch()
    Stage(StagePlan(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [own.name]


def test_all_files_of_an_image_are_known(tmp_path: Path, shared: Path) -> None:
    slides = shared / "data/slides"
    series = slides / "CMU-1-Small-Region-dicom"
    files = sorted(series.iterdir())
    assert image_files(str(files[1])) == files
    # Two slides lie beside each other, and are not each other's.
    alone = slides / "camelyon_challenge_jpeg.dcm"
    assert image_files(str(alone)) == [alone]
    assert image_files(str(series.parent / "CMU-1-Small-Region.svs")) == [
        series.parent / "CMU-1-Small-Region.svs"
    ]


def test_a_scene_is_copied_with_what_lies_beside_it(tmp_path: Path) -> None:
    import rasterio

    scene = images.write_scene(tmp_path / "scene.tif")
    with rasterio.open(scene) as raster:
        values, profile = raster.read(1), raster.profile
    with rasterio.open(tmp_path / "scene.tif.msk", "w", **(profile | {"count": 1})) as mask:
        mask.write(values, 1)
    assert set(image_files(str(scene)) or []) == {scene, tmp_path / "scene.tif.msk"}
