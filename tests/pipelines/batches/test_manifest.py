from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigavim.config import RunConfig
from gigavim.errors import GigavimError
from gigavim.pipelines.batches.manifest import Job, read_manifest

CONFIG = RunConfig(model="slide-mini", seed=3)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(entry: object, output: Path = Path("out")) -> list[Job]:
    return read_manifest([str(entry)], output, CONFIG)


def stores(jobs: list[Job], output: Path = Path("out")) -> list[str]:
    return [job.store.relative_to(output).as_posix() for job in jobs]


def table(folder: Path, *lines: str) -> Path:
    path = folder / "slides.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_folder_gives_its_images_and_mirrors_its_folders(tmp_path: Path) -> None:
    touch(tmp_path / "b.svs", tmp_path / "case 1/a.ndpi", tmp_path / "case 2/a.tif")
    touch(tmp_path / "notes.txt", tmp_path / "case 1/label.jpg")
    jobs = read(tmp_path)
    assert [Path(job.image).relative_to(tmp_path).as_posix() for job in jobs] == [
        "b.svs", "case 1/a.ndpi", "case 2/a.tif",
    ]  # fmt: skip
    assert stores(jobs) == [
        "b.gigavim.zarr", "case 1/a.gigavim.zarr", "case 2/a.gigavim.zarr",
    ]  # fmt: skip
    assert {job.config for job in jobs} == {CONFIG}


def test_what_is_many_files_is_one_image(tmp_path: Path, shared: Path) -> None:
    touch(tmp_path / "s.mrxs", tmp_path / "s/Data0001.dat", tmp_path / "s/odd.tif")
    touch(tmp_path / "t.ome.zarr/zarr.json", tmp_path / "t.ome.zarr/0/c/0.tif")
    touch(tmp_path / "S2.SAFE/GRANULE/B02.jp2")
    series = tmp_path / "dicom"
    series.symlink_to(shared / "data/slides/CMU-1-Small-Region-dicom")
    assert len(list(series.iterdir())) > 2
    jobs = read(tmp_path)
    names = [Path(job.image).relative_to(tmp_path).parts[0] for job in jobs]
    assert sorted(names) == ["S2.SAFE", "dicom", "s.mrxs", "t.ome.zarr"]


def test_results_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path / "s.tif", tmp_path / "s.classify.tif", tmp_path / "s.gigavim.zarr/zarr.json")
    touch(tmp_path / "other.classify.tif")
    names = [Path(job.image).name for job in read(tmp_path)]
    assert names == ["other.classify.tif", "s.tif"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "a/s.svs")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert len(read(tmp_path)) == 1


def test_globs_are_expanded_and_files_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path / "a1.svs", tmp_path / "a2.svs", tmp_path / "[odd].svs")
    assert stores(read(tmp_path / "a?.svs")) == ["a1.gigavim.zarr", "a2.gigavim.zarr"]
    assert stores(read(tmp_path / "[odd].svs")) == ["[odd].gigavim.zarr"]
    # That it is not there is said by its run, which costs no other its result.
    assert stores(read(tmp_path / "missing.svs")) == ["missing.gigavim.zarr"]
    with pytest.raises(GigavimError, match=r"nothing matches .*b\*\.svs; check the path"):
        read(tmp_path / "b*.svs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GigavimError, match="no images in"):
        read(tmp_path / "empty")


def test_equal_names_get_stores_of_their_own_in_any_order(tmp_path: Path) -> None:
    paths = [tmp_path / "1/a.svs", tmp_path / "2/A.svs", tmp_path / "2/b.svs"]
    touch(*paths)
    names = [str(path) for path in paths]
    one = {job.image: job.store for job in read_manifest(names, Path("out"), CONFIG)}
    other = {job.image: job.store for job in read_manifest(names[::-1], Path("out"), CONFIG)}
    assert one == other
    assert one[names[2]] == Path("out/b.gigavim.zarr")
    assert len({str(store).lower() for store in one.values()}) == 3


def test_an_image_that_is_named_twice_is_one(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    assert len(read_manifest([str(tmp_path), str(tmp_path / "a.svs")], Path("out"), CONFIG)) == 1


def test_a_table_sets_what_its_cells_say(tmp_path: Path) -> None:
    touch(tmp_path / "roi.geojson")
    path = table(
        tmp_path,
        "\ufeffimage,Spacing,source_spacing,mask,model,bands,heads,output",
        'a.svs,0.5,0.25,roi.geojson,nuclei,"red=1,green=2",features classify,p1/s1',
        "",
        "/data/b.svs,,,,,,,",
    )
    a, b = read(path)
    assert a.image == str(tmp_path / "a.svs")
    assert a.store == Path("out/p1/s1.gigavim.zarr")
    assert a.config == RunConfig(
        model="nuclei", seed=3, spacing=0.5, source_spacing=(0.25, 0.25),
        mask=str(tmp_path / "roi.geojson"), bands=("red=1", "green=2"),
        heads=("features", "classify"),
    )  # fmt: skip
    assert (b.image, b.config) == ("/data/b.svs", CONFIG)


def test_a_table_says_what_part_of_a_scene_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "farm.geojson")
    a, b = read(
        table(
            tmp_path,
            "image,crs,bounds,aoi,mask_clouds",
            'a.tif,EPSG:32633,"600000,5290000,610000,5300000",farm.geojson,Yes',
            "b.tif,,1 2 3.5 4,,no",
        )
    )
    assert (a.config.crs, a.config.bounds) == ("EPSG:32633", (600000, 5290000, 610000, 5300000))
    assert (a.config.aoi, a.config.mask_clouds) == (str(tmp_path / "farm.geojson"), True)
    assert (b.config.bounds, b.config.mask_clouds) == ((1, 2, 3.5, 4), False)


def test_one_image_may_be_mapped_in_two_ways(tmp_path: Path) -> None:
    jobs = read(table(tmp_path, "image,spacing", "a.svs,1", "a.svs,2", "a.svs,2"))
    assert [job.config.spacing for job in jobs] == [1, 2]
    assert len(set(stores(jobs))) == 2


def test_semicolons_of_excel_are_read(tmp_path: Path) -> None:
    (job,) = read(table(tmp_path, "image;spacing", "a.svs;2"))
    assert job.config.spacing == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["image,mpp", "a.svs,1"], r"line 1: there is no column 'mpp'; there are image, output, "),
        (["spacing", "1"], "line 1: it has no column 'image'"),
        (["image,image", "a,b"], "line 1: the column 'image' is there twice"),
        (["image,spacing", "a.svs,1", "b.svs,fine"], "line 3, spacing: 'fine' is no size"),
        (["image,spacing", "a.svs,nan"], "line 2, spacing: 'nan' is no size"),
        (["image,mode", "a.svs,hole"], "line 2, mode: 'hole' is none of whole, tiles"),
        (["image,clusters", "a.svs,999"], "line 2, clusters: '999' is no number from 1 to 255"),
        (["image,bounds", "a.tif,1 2 3"], "line 2, bounds: '1 2 3' is not west, south, east"),
        (["image,mask_clouds", "a.tif,1"], "line 2, mask_clouds: '1' is none of yes, no"),
        (["image,spacing", ",1"], "line 2: it names no image"),
        (["image", "a.svs,1"], "line 2: 2 cells for 1 columns; put quotes"),
        (["image,output", "a.svs,x", "b.svs,X"], "line [23]: output [xX].* another image too"),
        (["image", '"a.svs'], "cannot be read: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said_with_its_line(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(GigavimError, match=rf"slides\.csv,? ?.*{said}") as caught:
        read(table(tmp_path, *lines))
    assert "\n" not in str(caught.value)


PARTS = st.sampled_from(["..", ".", "a", "b c", "", "/", "\\", "C:", "~", "\x00", "CON", "..."])


@given(st.lists(PARTS, min_size=1, max_size=6), st.sampled_from("/\\"))
def test_no_name_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], separator: str
) -> None:
    folder = tmp_path_factory.mktemp("table")
    name = separator.join(parts)
    path = table(folder, "image,output", f'a.svs,"{name}"')
    output = folder / "out"
    try:
        (job,) = read(path, output)
    except GigavimError:
        return
    assert Path(os.path.normpath(job.store)).is_relative_to(output)
    assert job.store.name.endswith(".gigavim.zarr")


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "C:\\x", "\\\\server\\x", "a\\..\\..\\x", "..", "."]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, "image,output", f"a.svs,{name}")
    with pytest.raises(
        GigavimError, match=r"line 2: output .* is no name inside the output folder"
    ):
        read(path)


def test_a_link_in_the_output_folder_leads_nowhere_else(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "p1").symlink_to(tmp_path)
    with pytest.raises(GigavimError, match="leads out of"):
        read(table(tmp_path, "image,output", "a.svs,p1/s"), output)


def test_an_image_more_costs_little_memory(tmp_path: Path) -> None:
    path = table(tmp_path, "image", *(f"slide-{n}.svs" for n in range(2000)))
    read(path)
    tracemalloc.start()
    jobs = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(jobs) == 2000
    assert peak / len(jobs) < 3000
