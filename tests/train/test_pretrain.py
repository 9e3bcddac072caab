from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
import torch

from gigavim.checkpoint import load_model
from gigavim.encoder import VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.pipelines import unlabelled
from gigavim.pipelines.pretrain import Explained, MaskedModel, masked_loss
from gigavim.pipelines.train.project import RECIPES
from gigavim.pipelines.unlabelled import pretrain_on
from gigavim.pipelines.views import Recognised, contrast
from images import tissue, write_scene, write_slide
from tile_files import write_folder

PROJECT = """
window = 2
licence = "CC0-1.0"

[model]
width = 16
depth = 2
state = 4

[[phases]]
epochs = 2
batch = 4
learning_rate = 1e-2
average = 0.9
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(unlabelled, "EPOCH", 30)
    path = tmp_path / "options.toml"
    path.write_text(PROJECT)
    return path


def test_an_encoder_learns_from_tiles_without_labels(project: Path) -> None:
    tiles = write_folder(project.with_name("tiles"))
    output = project.with_name("encoder.safetensors")

    metrics = pretrain_on([tiles], output, project=project, device="cpu")

    # What the patches of a tile have in common is its colour.
    assert metrics["explained"] > 0.3
    model = load_model(output)
    assert model.spec.architecture.classes == 0
    assert (model.spec.tile, model.spec.licence) == (16, "CC0-1.0")
    assert model.spec.metrics == metrics

    again = project.with_name("again.safetensors")
    pretrain_on([tiles], again, project=project, device="cpu")
    assert again.read_bytes() == output.read_bytes()


def test_an_encoder_learns_to_know_places_again(project: Path) -> None:
    slide = write_slide(project.with_name("slide.tif"), tissue(512, 512))
    output = project.with_name("encoder.safetensors")
    project.write_text(
        f"objective = 'views'\nspacing = 1.0\nunit = 'µm'\n{PROJECT}[augmentation]\nstain = 0.02\n"
    )

    metrics = pretrain_on([slide], output, project=project, device="cpu")

    assert metrics["recognised"] > 1 / 7  # one of the seven other views
    assert load_model(output).spec.metrics == metrics
    project.write_text(project.read_text() + "band_dropout = 0.5\n")
    with pytest.raises(GigavimError, match="not of views"):
        pretrain_on([slide], output, project=project, device="cpu")


def test_an_encoder_learns_the_season_from_scenes_that_are_dated(project: Path) -> None:
    folder = project.with_name("scenes")
    folder.mkdir()
    for name in ("2024-01-10", "2024-04-12", "2024-07-10", "2024-10-05"):
        write_scene(folder / f"{name}.tif")
    output = project.with_name("season.safetensors")
    project.write_text(PROJECT.replace("[model]", "[model]\nseason = true"))

    pretrain_on([folder], output, project=project, device="cpu")

    encoder = load_model(output).encoder
    assert encoder.config.season
    known, unknown = encoder.season_for(torch.tensor([100.0, torch.nan]))
    assert known.abs().max() > 1e-3
    assert not unknown.any()

    undated = write_scene(project.with_name("scene.tif"))
    elsewhere = project.with_name("none.safetensors")
    with pytest.raises(GigavimError, match=r"scene.tif .* do not say when .* leave season out"):
        pretrain_on([undated], elsewhere, project=project, device="cpu")
    project.write_text("objective = 'views'\n" + project.read_text())
    with pytest.raises(GigavimError, match="not of views"):
        pretrain_on([folder], elsewhere, project=project, device="cpu")


def test_views_of_one_place_are_told_from_those_of_others() -> None:
    places = torch.arange(3).repeat_interleave(2)
    known = torch.eye(3).repeat_interleave(2, 0)
    mistaken = known[[0, 2, 1, 4, 3, 5]]

    assert contrast(known, places) < 0.01 < contrast(mistaken, places)
    recognised = Recognised()
    recognised.update(known, places)
    assert recognised.compute() == 1
    recognised.update(mistaken, places)
    assert recognised.compute() == 0.5


def test_slides_are_learned_from_at_their_spacing(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = write_slide(project.with_name("slide.tif"), tissue(256, 256))
    broken = project.with_name("broken.tif")
    broken.write_bytes(b"no image")
    output = project.with_name("encoder.safetensors")
    project.write_text(f"spacing = 1.0\nunit = 'µm'\n{PROJECT}")

    pretrain_on([slide, broken], output, project=project, epochs=1, device="cpu")

    assert load_model(output).spec.spacing == 1.0
    assert "1 of 2 images cannot be read and are left out" in caplog.text
    with pytest.raises(GigavimError, match="--force starts over"):
        pretrain_on([slide], output, project=project, epochs=1, device="cpu")


def test_a_table_says_which_images_are_never_opened(project: Path) -> None:
    tiles = write_folder(project.with_name("tiles"), 2)
    (tiles / "sea/0.png").write_bytes(b"no image")
    table = project.with_name("tiles.csv")
    table.write_text(
        "file,group,split,spacing\nforest/0.png,a,train,0.5\nforest/1.png,b,val,0.5\n"
        "sea/0.png,c,test,\nsea/1.png,a,train,1.0\n"
    )
    project.write_text(f"data = 'tiles.csv'\nspacing = 1.0\n{PROJECT}")
    output = project.with_name("encoder.safetensors")

    pretrain_on([tiles], output, project=project, epochs=1, device="cpu")

    spec = load_model(output).spec
    split = output.with_suffix(".split.csv").read_bytes()
    assert hashlib.sha256(split).hexdigest() == spec.split
    assert b"\nsea/0.png,,c,test\n" in split
    assert (spec.spacing, spec.unit) == (1.0, "µm")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("forest/0.png,a,train\nforest/1.png,a,test", "1 groups are in more than one split"),
        ("forest/0.png,a,train\nforest/9.png,b,val", "names 1 files that are not in"),
        ("forest/0.png,a,train\nforest/1.png,b,", "1 of 2 images have no split"),
        ("forest/0.png,a,training", "there is no split 'training'"),
        ("", "names no image"),
    ],
)
def test_a_faulty_table_of_images_is_one_clear_error(
    project: Path, rows: str, message: str
) -> None:
    tiles = write_folder(project.with_name("tiles"), 2)
    project.with_name("tiles.csv").write_text(f"file,group,split\n{rows}\n")
    project.write_text(f"data = 'tiles.csv'\n{PROJECT}")

    with pytest.raises(GigavimError, match=message) as error:
        pretrain_on([tiles], project.with_name("encoder.safetensors"), project=project)
    assert "\n" not in str(error.value)


def test_a_project_that_is_no_toml_file_is_refused(project: Path) -> None:
    tiles = write_folder(project.with_name("tiles"), 2)
    with pytest.raises(GigavimError, match="tiles is no project; name a TOML file, or one of"):
        pretrain_on([tiles], project.with_name("encoder.safetensors"), project=tiles)


def test_the_split_of_histology_is_what_the_sets_say(shared: Path) -> None:
    table = RECIPES / "histology.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    splits = {(row["group"], row["split"]) for row in rows}
    assert len(splits) == len({row["group"] for row in rows})
    assert all((shared / "data" / row["file"]).is_file() for row in rows)
    for name in ("nuclei_dsb2018_cc0/index.csv", "breakhis_mini_ccby/labels.csv"):
        path = shared / "data/labelled" / name
        with path.open(newline="", encoding="utf-8") as file:
            tests = [row.get("id", "") or row["file"] for row in csv.DictReader(file)
                     if row["split"] == "test"]  # fmt: skip
        learned = "\n".join(row["file"] for row in rows if row["split"] != "test")
        assert not [test for test in tests if test in learned]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GigavimError, match="no image is in this folder"):
        pretrain_on([tmp_path], tmp_path / "encoder.safetensors")


def test_hidden_patches_alone_are_predicted_and_counted() -> None:
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=8, patch=4, stride=4, width=8, depth=1, state=4, classes=0,
        class_token="none", position="none",
    )  # fmt: skip
    model = MaskedModel(config).eval()
    patches = torch.randn(1, 2, 2, 4, 4, 3)
    seen = patches.clone()
    seen[0, 1, 0] = torch.nan

    predicted = model(seen)

    assert predicted.isfinite().all()
    hidden = torch.full_like(patches, torch.nan)
    hidden[0, 1, 0] = patches[0, 1, 0]
    error = ((predicted - patches)[0, 1, 0] ** 2).mean()
    torch.testing.assert_close(masked_loss(predicted, hidden), error)
    explained = Explained()
    explained.update(predicted, hidden)
    torch.testing.assert_close(
        explained.compute().float(), 1 - error / (patches[0, 1, 0] ** 2).mean()
    )
