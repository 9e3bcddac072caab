from __future__ import annotations

from pathlib import Path

import pytest
import zarr

from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, ModelError
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.commands import evaluate, train
from images import tissue, write_model, write_slide

PROJECT = """
data = "slides.csv"
task = "bags"

[[phases]]
epochs = 12
learning_rate = 2e-2
smoothing = 0.0
average = 0.9
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Slides of which some have a dark spot, one in a corner of the tissue."""
    lines = ["file,label,group"]
    for number in range(6):
        image = tissue(256, 256, number)
        if number % 2:
            image[96:144, 80:128] = (60, 20, 120)
        write_slide(tmp_path / f"{number}.tif", image)
        lines.append(f"{number}.tif,{'spot' if number % 2 else 'clear'},patient {number}")
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    write_model(tmp_path / "encoder.safetensors")
    path = tmp_path / "project.toml"
    path.write_text(PROJECT)
    return path


def test_whole_images_are_told_apart_by_what_is_in_a_part_of_them(project: Path) -> None:
    output, start = (project.with_name(f"{name}.safetensors") for name in ("model", "encoder"))

    figures = train(project, output, start=start, device="cpu")

    model = load_model(output)
    assert model.bag is not None
    assert model.spec.classes is not None
    assert model.spec.classes.names == ("clear", "spot")
    assert model.spec.architecture.width == 32
    assert figures.by_name["accuracy"].value == 1
    assert model.spec.metrics["test accuracy"] == 1

    seen = evaluate(output, project.with_name("slides.csv"))
    assert (seen["split"], seen["images"]) == ("test", figures.images)
    assert seen["figures"]["accuracy"]["value"] == 1


def test_a_run_classifies_the_image_and_says_where_it_looked(project: Path) -> None:
    output, start = (project.with_name(f"{name}.safetensors") for name in ("model", "encoder"))
    train(project, output, start=start, device="cpu")
    store = project.with_name("1.gigavim.zarr")

    summary = run_image(
        str(project.with_name("1.tif")), store, RunConfig(model=str(output)), Resources("cpu", 1)
    )

    assert max(summary.scores, key=lambda name: summary.scores[name]) == "spot"
    group = zarr.open_group(store, mode="r")
    attention, valid = group["tokens/attention"][:], group["tokens/valid"][:]
    assert attention[valid > 0].sum() == pytest.approx(1, abs=1e-5)
    assert "attention" in group["maps"]


def test_a_head_of_whole_images_reads_no_tiles(project: Path) -> None:
    output, start = (project.with_name(f"{name}.safetensors") for name in ("model", "encoder"))
    train(project, output, start=start, device="cpu", epochs=1)
    config = RunConfig(model=str(output), mode="tiles")
    with pytest.raises(ModelError, match="classifies whole images; use --mode whole"):
        run_image(str(project.with_name("1.tif")), project.with_name("x"), config, Resources("cpu"))


def test_features_are_computed_once(project: Path) -> None:
    output, start = (project.with_name(f"{name}.safetensors") for name in ("model", "encoder"))
    train(project, output, start=start, device="cpu", epochs=1)
    features = output.with_suffix(".train") / "features"
    before = {path: path.stat().st_mtime_ns for path in features.rglob("zarr.json")}
    first = output.read_bytes()

    train(project, output, start=start, device="cpu", epochs=1)

    assert before == {path: path.stat().st_mtime_ns for path in features.rglob("zarr.json")}
    assert output.read_bytes() == first


def test_a_head_of_whole_images_needs_an_encoder(project: Path) -> None:
    with pytest.raises(GigavimError, match="pass one with --from"):
        train(project, project.with_name("model.safetensors"), device="cpu")
