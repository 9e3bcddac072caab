from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gigavim.checkpoint import load_model
from gigavim.errors import GigavimError
from gigavim.pipelines.train.commands import evaluate, train
from tile_files import write_folder, write_table

PROJECT = """
data = "tiles/labels.csv"
spacing = 10.0
unit = "metre"
training_data = "two colours"
licence = "CC0-1.0"
seed = 4

[model]
width = 16
depth = 2
state = 4

[augmentation]
turns = true

[[phases]]
epochs = 3
batch = 4
learning_rate = 1e-2

[colours]
sea = "#0000ff"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_table(tmp_path / "tiles")
    path = tmp_path / "project.toml"
    path.write_text(PROJECT)
    return path


def test_a_model_is_trained_and_says_all_that_it_takes_to_run_it(project: Path) -> None:
    output = project.with_name("model.safetensors")
    figures = train(project, output, device="cpu")

    model = load_model(output)
    spec = model.spec
    assert figures.by_name["accuracy"].value == 1
    assert spec.classes is not None
    assert spec.classes.names == ("forest", "sea")
    assert spec.classes.colours[1] == (0, 0, 255)
    assert (spec.spacing, spec.unit, spec.tile) == (10.0, "metre", 16)
    assert (spec.training_data, spec.licence) == ("two colours", "CC0-1.0")
    assert spec.metrics["test accuracy"] == 1
    assert len(spec.split) == 64
    assert 0 < spec.mean[2] < 1
    folder = output.with_suffix(".train") / "phase-1"
    assert (folder / "curves.png").stat().st_size > 1000
    assert len((folder / "log.csv").read_text().splitlines()) == 4

    seen = evaluate(output, project.with_name("tiles"))
    assert json.loads(json.dumps(seen))["figures"]["accuracy"]["value"] == 1
    assert seen["split"] == "test"
    assert seen["images"] == figures.images < 24


def test_the_split_beside_the_model_is_that_of_its_hash(project: Path) -> None:
    import hashlib

    output = project.with_name("model.safetensors")
    train(project, output, device="cpu", epochs=1)

    table = output.with_suffix(".split.csv").read_bytes()
    assert load_model(output).spec.split == hashlib.sha256(table).hexdigest()
    assert b"\nforest/0.png,forest,slide 0," in table


def test_two_runs_with_one_seed_give_the_same_bytes(project: Path) -> None:
    outputs = [project.with_name(name) for name in ("a.safetensors", "b.safetensors")]
    for output in outputs:
        train(project, output, device="cpu", epochs=1)
    third = project.with_name("c.safetensors")
    train(project, third, device="cpu", epochs=1, seed=5)

    assert outputs[0].read_bytes() == outputs[1].read_bytes() != third.read_bytes()


def test_fine_tuning_on_longer_sequences_begins_with_a_model(project: Path) -> None:
    first = project.with_name("first.safetensors")
    train(project, first, device="cpu", epochs=1)
    longer = project.with_name("longer.safetensors")
    train(project.with_name("tiles") / "labels.csv", longer, start=first, patch_stride=4,
          epochs=1, seed=4, device="cpu")  # fmt: skip

    before, after = load_model(first).spec, load_model(longer).spec
    assert (before.architecture.stride, after.architecture.stride) == (8, 4)
    assert (before.mean, before.spacing) == (after.mean, after.spacing)


def test_a_run_with_other_settings_is_not_continued(project: Path) -> None:
    output = project.with_name("model.safetensors")
    train(project, output, device="cpu", epochs=1)

    with pytest.raises(GigavimError, match="other settings or tiles; --force starts over"):
        train(project, output, device="cpu", epochs=2)
    train(project, output, device="cpu", epochs=2, force=True)


def test_a_loss_that_is_no_number_stops_the_run_with_one_line(project: Path) -> None:
    project.write_text(PROJECT.replace("1e-2", "1e30"))

    with pytest.raises(GigavimError, match=r"the loss is nan in epoch 1.* learning rate"):
        train(project, project.with_name("model.safetensors"), device="cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width = 16", "widht = 16", "widht"),
        ("epochs = 3", "epoch = 3", "epoch"),
        ("[colours]\nsea", "[colours]\nriver", "colours name 'river'"),
        ("#0000ff", "blue", "not written as #rrggbb"),
        ('data = "tiles/labels.csv"', "", "names no tiles; pass --data"),
        ("seed = 4", "seed = ", "no readable TOML"),
        ("batch = 4", "batch = 4\naugmentation = { haze = [0.1] }", "haze has 1 values"),
    ],
)
def test_a_faulty_project_is_one_clear_error(
    project: Path, old: str, new: str, message: str
) -> None:
    project.write_text(PROJECT.replace(old, new))

    with pytest.raises(GigavimError, match=message) as error:
        train(project, project.with_name("model.safetensors"), device="cpu")
    assert "\n" not in str(error.value)


def test_classes_that_a_model_does_not_know_are_named(project: Path) -> None:
    output = project.with_name("model.safetensors")
    train(project, output, device="cpu", epochs=1)
    folder = write_folder(project.with_name("others"), count=1)
    shutil.move(folder / "sea", folder / "river")

    with pytest.raises(GigavimError, match="does not know 'river'; it knows forest, sea"):
        evaluate(output, folder)


def test_a_project_by_another_name_is_not_taken_for_tiles(project: Path) -> None:
    other = project.rename(project.with_suffix(".txt"))

    with pytest.raises(GigavimError, match=r"no such folder, .zip, .csv or .toml"):
        train(other, project.with_name("model.safetensors"), device="cpu")


@pytest.mark.slow
def test_a_tiny_model_learns_from_a_few_real_tiles(shared: Path, tmp_path: Path) -> None:
    """Ten classes of land cover, 40 tiles each; chance is 0.1."""
    import zipfile

    with zipfile.ZipFile(shared / "data/labelled/eurosat_rgb.zip") as archive:
        for name in archive.namelist():
            split, _, file = name.split("/")
            number = int(file.partition("_")[2].removesuffix(".jpg"))
            if number <= {"train": 60, "val": 300, "test": 300}[split]:
                archive.extract(name, tmp_path / "tiles")
    project = tmp_path / "project.toml"
    project.write_text(PROJECT.replace("tiles/labels.csv", "tiles").replace("sea", "SeaLake"))

    figures = train(project, tmp_path / "model.safetensors", epochs=4, device="cpu")

    assert figures.by_name["accuracy"].low > 0.2
