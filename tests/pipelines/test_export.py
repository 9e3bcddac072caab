from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import zarr

from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, StoreError
from gigavim.exports import place
from gigavim.pipelines.export import FORMATS, export
from gigavim.pipelines.run import run_image


@pytest.fixture(scope="module")
def store(scene: Path, scene_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "scene.gigavim.zarr"
    config = RunConfig(model=str(scene_model), clusters=2)
    run_image(str(scene), path, config, Resources(device="cpu"))
    return path


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "h5-stamp"])
def test_every_format_is_written_into_a_new_folder(store: Path, to: str, tmp_path: Path) -> None:
    for package in ("h5py", "pyarrow"):
        pytest.importorskip(package)
    path = export(store, to, tmp_path / "new" / f"out{_suffix(to)}")
    assert path.exists()
    assert not list(path.parent.glob("*.partial*"))


def test_a_file_lies_beside_its_store_unless_told(store: Path, tmp_path: Path) -> None:
    assert export(store, "csv") == store.with_name("scene.tokens.csv")
    assert export(store, "geojson") == store.with_name("scene.clusters.geojson")
    for to, name in (("csv", "scene.tokens.csv"), ("html", "scene.html")):
        assert export(store, to, tmp_path) == tmp_path / name


@pytest.mark.parametrize("to", ["csv", "spatialdata"])
def test_what_is_there_is_replaced_only_if_asked(store: Path, to: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{_suffix(to)}"
    export(store, to, path)
    with pytest.raises(StoreError, match=r"is there already; replace it with --force"):
        export(store, to, path)
    assert export(store, to, path, force=True) == path


def test_an_unfinished_result_is_refused(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scene.gigavim.zarr"
    shutil.copytree(store, copy)
    group = zarr.open_group(copy, mode="r+")
    group.attrs["gigavim"] = {**group.attrs["gigavim"], "status": "running"}
    with pytest.raises(StoreError, match=r"not complete \(its run is running\); finish it"):
        export(copy, "csv")


def test_a_map_that_is_not_there_is_named_with_those_that_are(store: Path) -> None:
    with pytest.raises(
        StoreError, match="no class map 'classify'; it has clusters, qc, foreground"
    ):
        export(store, "geojson", head="classify")


def test_a_format_that_is_none_is_the_callers_mistake(store: Path) -> None:
    with pytest.raises(ValueError, match="no format 'docx'"):
        export(store, "docx")


def test_half_a_file_never_has_the_name_of_a_whole(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    def break_off(path: Path) -> None:
        with place.new_path(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            break_off(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(
        GigavimError, match=r"needs no_such_package.*pip install 'gigavim\[tables\]'"
    ):
        place.library("no_such_package", "tables")


def test_a_full_or_forbidden_folder_is_an_error_in_words(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="cannot write"):
        export(store, "csv", tmp_path / "file" / "out.csv")


def _suffix(to: str) -> str:
    return {"geotiff": ".tif", "ome-tiff": ".ome.tif", "spatialdata": ".zarr"}.get(to, f".{to}")
