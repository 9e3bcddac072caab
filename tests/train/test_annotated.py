from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imsave

from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.geometry import Grid
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.annotated import PatchNamer
from gigavim.pipelines.train.commands import evaluate, train
from gigavim.pipelines.train.labels import NONE, read_labels
from gigavim.sources import open_source
from gigavim.store import ResultStore
from images import (
    ORIGIN,
    feature,
    tissue,
    write_annotation,
    write_scene,
    write_slide,
    write_slides,
)

MODEL = "[model]\nwidth = 16\ndepth = 2\nstate = 4\npatch = 16\nstride = 16\n"
PHASE = "[[phases]]\nepochs = 6\nbatch = 2\nlearning_rate = 2e-2\nsmoothing = 0.0\naverage = 0.9\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_slides(tmp_path / "slides")
    path = tmp_path / "project.toml"
    path.write_text(f'data = "slides/slides.csv"\nseed = 1\nwindow = 8\n{MODEL}{PHASE}')
    return path


def test_a_model_learns_to_name_patches_from_polygons(project: Path) -> None:
    output = project.with_name("model.safetensors")
    figures = train(project, output, device="cpu")

    spec = load_model(output).spec
    assert figures.by_name["accuracy"].value > 0.95
    assert spec.classes is not None
    assert spec.classes.names == ("dark", "pink")
    assert spec.classes.colours[1] == (255, 0, 128)
    assert (spec.spacing, spec.unit, spec.tile) == (0.5, "µm", 128)
    with output.with_suffix(".split.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"train", "val", "test"}

    # A run of a whole slide names its patches.
    run_image(
        str(project.parent / "slides/0.tif"), store := project.with_name("0.gigavim.zarr"),
        RunConfig(model=str(output)), Resources(device="cpu"),
    )  # fmt: skip
    with ResultStore.open(store) as result:
        row, column = result.values("tokens/grid_index").T
        is_pink = result.values("tokens/probs")[:, 1] > 0.5
    is_inside = (row >= 8) & (row < 16)
    assert is_pink[is_inside & (column >= 10) & (column < 15)].mean() > 0.9
    assert is_pink[is_inside & (column >= 17) & (column < 22)].mean() < 0.1

    seen = evaluate(output, project)
    assert seen["split"] == "test"
    assert seen["figures"]["accuracy"]["value"] == figures.by_name["accuracy"].value
    assert seen["images"] == 1


def test_two_runs_on_annotations_with_one_seed_give_the_same_bytes(project: Path) -> None:
    outputs = [project.with_name(name) for name in ("a.safetensors", "b.safetensors")]
    for output in outputs:
        train(project, output, device="cpu", epochs=1)

    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_slides_without_spacing_are_given_one(project: Path) -> None:
    for number in range(3):
        write_slide(project.parent / f"slides/{number}.tif", tissue(384, 512, number), mpp=None)
    output = project.with_name("model.safetensors")
    text = project.read_text()

    project.write_text(f"spacing = 1.0\n{text}")
    with pytest.raises(GigavimError, match="write source_spacing in the project"):
        train(project, output, device="cpu", epochs=1)
    project.write_text(f"spacing = 1.0\nsource_spacing = 0.5\nunit = 'µm'\n{text}")
    train(project, output, device="cpu", epochs=1)

    assert load_model(output).spec.spacing == 1.0


def test_images_are_listed_in_the_project_itself(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides")
    images = "".join(
        f'[[images]]\nfile = "slides/{n}.tif"\nlabels = "slides/{n}.geojson"\nsplit = "{split}"\n'
        for n, split in enumerate(["train", "val", "test"])
    )
    path = tmp_path / "project.toml"
    path.write_text(f"window = 8\n{MODEL}{PHASE}{images}")

    train(path, tmp_path / "model.safetensors", device="cpu", epochs=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.tif,0.geojson", "0.tif,none.geojson", r"1 files of 6 are not there, as none.geojson"),
        ("0.tif,0.geojson", "0.tif,", "needs file and labels"),
        ("patient 1", "patient 0", "groups cannot be split"),
    ],
)
def test_a_faulty_list_of_images_is_one_clear_error(
    project: Path, old: str, new: str, message: str
) -> None:
    table = project.parent / "slides/slides.csv"
    table.write_text(table.read_text().replace(old, new))

    with pytest.raises(GigavimError, match=message) as error:
        train(project, project.with_name("model.safetensors"), device="cpu")
    assert "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_left_out_and_counted(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = project.parent / "slides"
    write_slides(project.parent / "more", 4)
    (project.parent / "more/3.tif").write_bytes(b"no image at all")
    folder.rename(project.parent / "old")
    (project.parent / "more").rename(folder)

    train(project, project.with_name("model.safetensors"), device="cpu", epochs=1)

    assert "1 of 4 images cannot be read and are left out, as" in caplog.text


def test_a_class_under_no_patch_is_an_error(project: Path) -> None:
    for number in range(3):
        path = project.parent / f"slides/{number}.geojson"
        content = json.loads(path.read_text())
        content["features"].append(feature("speck", 300, 200, 302, 202))
        path.write_text(json.dumps(content))

    with pytest.raises(GigavimError, match="'speck' lies under the centre of no patch"):
        train(project, project.with_name("model.safetensors"), device="cpu")


def test_the_last_polygon_over_the_centre_of_a_patch_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(write_slide(tmp_path / "slide.tif", tissue(256, 256)))
    grid = Grid.over(256, 256, patch=16, ratio_y=2.0, ratio_x=2.0)  # cells of 32 pixels
    path = write_annotation(
        tmp_path / "labels.geojson",
        feature("all", 0, 0, 256, 256),
        feature("one", 70, 40, 90, 60),
        feature("none", 98, 34, 110, 46),
        feature(None, 0, 0, 256, 256),
        feature("far", 1000, 1000, 1100, 1100),
    )

    labels = read_labels(path, source, grid)

    expected = np.full((8, 8), labels.names.index("all"))
    expected[1, 2] = labels.names.index("one")
    np.testing.assert_array_equal(labels.layout, expected)
    assert "1 of 5 shapes have no class" in caplog.text
    assert "1 of 4 shapes lie outside" in caplog.text


def test_polygons_all_outside_the_slide_are_an_error(tmp_path: Path) -> None:
    source = open_source(write_slide(tmp_path / "slide.tif", tissue(256, 256)))
    path = write_annotation(tmp_path / "far.geojson", feature("far", 1000, 1000, 1100, 1100))

    with pytest.raises(GigavimError, match=r"none of its 1 shapes .* \(256 x 256 pixels\)"):
        read_labels(path, source, Grid.over(256, 256, patch=16))


@pytest.mark.parametrize("units", ["metres", "pixels", "degrees"])
def test_polygons_on_a_scene_are_in_its_crs_or_pixels_or_degrees(
    tmp_path: Path, units: str
) -> None:
    from rasterio.warp import transform_geom

    source = open_source(write_scene(tmp_path / "scene.tif"))
    drawn = feature("water", 32, 64, 96, 128)
    if units != "pixels":
        x, y = ORIGIN
        drawn = feature("water", x + 320, y - 1280, x + 960, y - 640)
    if units == "degrees":
        drawn["geometry"] = transform_geom(source.crs, "OGC:CRS84", drawn["geometry"])
    path = write_annotation(tmp_path / "labels.geojson", drawn)

    labels = read_labels(path, source, Grid.over(256, 320, patch=16))

    expected = np.full((16, 20), NONE)
    expected[4:8, 2:6] = 0
    np.testing.assert_array_equal(labels.layout, expected)


def test_a_label_raster_is_brought_to_the_patches_by_its_crs(tmp_path: Path) -> None:
    import rasterio

    source = open_source(write_scene(tmp_path / "scene.tif"))
    x, y = ORIGIN
    numbers = np.zeros((10, 10), np.uint8)
    numbers[2:4, 2:4], numbers[6, 6] = 3, 7
    # 160 m pixels, as patches are, whose corner is 160 m east and south of the scene's.
    path = tmp_path / "labels.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=10, width=10, count=1, dtype="uint8",
        crs=source.crs, transform=rasterio.Affine(160, 0, x + 160, 0, -160, y - 160),
    ) as raster:  # fmt: skip
        raster.write(numbers[None])
    grid = Grid.over(256, 320, patch=16)

    labels = read_labels(path, source, grid)
    assert labels.names == ("class 3", "class 7")
    expected = np.full(grid.shape, NONE)
    expected[3:5, 3:5], expected[7, 7] = 0, 1
    np.testing.assert_array_equal(labels.layout, expected)

    named = read_labels(path, source, grid, {"water": 7, "ice": 9})
    assert named.names == ("water",)
    assert (named.layout != NONE).sum() == 1


def test_a_label_raster_without_a_crs_covers_the_whole_image(tmp_path: Path) -> None:
    source = open_source(write_slide(tmp_path / "slide.tif", tissue(256, 256)))
    numbers = np.kron(np.array([[1, 2], [0, 1]], np.uint8), np.ones((32, 32), np.uint8))
    path, wide = tmp_path / "labels.png", tmp_path / "wide.png"
    imsave(path, numbers, check_contrast=False)
    imsave(wide, numbers[:16], check_contrast=False)

    labels = read_labels(path, source, Grid.over(256, 256, patch=32))

    np.testing.assert_array_equal(
        labels.layout, np.kron([[0, 1], [NONE, 0]], np.ones((4, 4), np.int64))
    )
    with pytest.raises(GigavimError, match="other proportions"):
        read_labels(wide, source, Grid.over(256, 256, patch=32))


def test_patches_that_are_not_there_do_not_change_what_is_said_of_others() -> None:
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=16, patch=4, stride=4, width=8, depth=2, state=4, classes=3,
        class_token="none", position="none",
    )  # fmt: skip
    encoder = VisionMamba(config).eval()
    namer = PatchNamer(encoder)
    patches = torch.randn(2, 4, 4, 4, 4, 3)
    patches[1, 1, 2] = patches[1, 3, 3] = torch.nan

    logits = namer(patches).view(2, 16, 3)

    kept = [i for i in range(16) if i not in (6, 15)]
    alone = encoder.mix(encoder.embed(patches[1].flatten(0, 1)[kept])[None]).tokens[0]
    torch.testing.assert_close(logits[1, kept], encoder.head(alone))
    whole = encoder.mix(encoder.embed(patches[0].flatten(0, 1))[None]).tokens[0]
    torch.testing.assert_close(logits[0], encoder.head(whole))
