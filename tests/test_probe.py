from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shapely import LineString, Polygon, box

from gigavim.annotations import Annotation
from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, ModelError, StoreError
from gigavim.pipelines.run import run_image
from gigavim.probe import Encoded, Probe, fit_probe
from gigavim.probe_model import model_of, save_probe
from gigavim.store import ResultStore
from images import write_model, write_scene, write_slide

# The tissue of the slide: an ellipse around (768, 512), pink on the left and dark on the right.
DRAWN = [
    Annotation(LineString([(480, 500), (700, 520)]), "pink", (255, 0, 128), 24.0),
    Annotation(box(840, 400, 1000, 600), "dark"),
    Annotation(Polygon([(600, 340), (720, 340), (720, 420)]), "pink", (255, 0, 128)),
    Annotation(LineString([(820, 650), (980, 620)]), "dark"),
]


def run(image: Path, model: Path, store: Path, **options: object) -> ResultStore:
    command = ["gigavim", "run", str(image), "--model", str(model)]
    config = RunConfig(model=str(model), **options)  # type: ignore[arg-type]
    run_image(str(image), store, config, Resources(device="cpu"), command=command)
    return ResultStore.open(store)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.svs")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, slide: Path, model: Path) -> ResultStore:
    return run(slide, model, tmp_path_factory.mktemp("whole") / "slide.gigavim.zarr")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory, slide: Path, model: Path) -> ResultStore:
    store = tmp_path_factory.mktemp("tiled") / "slide.gigavim.zarr"
    return run(slide, model, store, mode="tiles", spacing=1.0)


def test_a_few_strokes_map_the_whole_image(whole: ResultStore) -> None:
    encoded = Encoded.of(whole)
    probe = fit_probe(encoded, DRAWN)
    labels, probs = probe.map(encoded)

    assert probe.classes.names == ("pink", "dark")
    assert probe.classes.colours[0] == (255, 0, 128)
    assert probe.shapes == (2, 2)
    row, column = encoded.index.T
    is_read = labels > 0
    assert is_read[row, column].all()
    assert is_read.sum() == len(row)
    # Patches at the rim are half of glass, which nobody drew.
    inside = labels[20:44, 32:64] == 1
    assert inside[:, :15].mean() > 0.9
    assert inside[:, 17:].mean() < 0.1
    np.testing.assert_allclose(probs[:, is_read].sum(0, np.float32), 1, atol=2e-3)
    assert not probs[:, ~is_read].any()


def test_the_same_strokes_give_the_same_probe(whole: ResultStore) -> None:
    encoded = Encoded.of(whole)
    first, second = (fit_probe(encoded, DRAWN) for _ in range(2))

    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_three_classes_of_unlike_size_are_all_found(whole: ResultStore) -> None:
    glass_rim = Annotation(LineString([(768, 262), (770, 280)]), "rim", width=30.0)
    encoded = Encoded.of(whole)
    probe = fit_probe(encoded, [*DRAWN, glass_rim])

    assert probe.weight.shape == (3, 32)
    labels, _ = probe.map(encoded)
    assert probe.counts[2] < probe.counts[0]
    assert set(np.unique(labels)) == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_a_run_with_the_saved_probe_gives_the_map_of_the_probe(
    mode: str, slide: Path, model: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = request.getfixturevalue("whole" if mode == "whole" else "tiled")
    encoded = Encoded.of(store)
    probe = fit_probe(encoded, DRAWN)
    saved = tmp_path / "probe.safetensors"
    save_probe(saved, probe, store, model_of(store))

    again = run(slide, saved, tmp_path / "again.gigavim.zarr")

    labels, probs = probe.map(encoded)
    np.testing.assert_array_equal(again.values("labels/classify/0"), labels)
    row, column = again.values("tokens/grid_index").T
    np.testing.assert_allclose(
        again.values("tokens/probs").astype(np.float32),
        probs[:, row, column].T.astype(np.float32),
        atol=1e-3,
    )


def test_a_saved_probe_says_what_it_is(tiled: ResultStore, tmp_path: Path) -> None:
    probe = fit_probe(Encoded.of(tiled), DRAWN)
    before = model_of(tiled)
    save_probe(tmp_path / "probe.safetensors", probe, tiled, before)

    spec = load_model(tmp_path / "probe.safetensors").spec

    assert (spec.mode, spec.spacing, spec.unit) == ("tiles", 1.0, "µm")
    assert (spec.bands, spec.mean) == (before.spec.bands, before.spec.mean)
    assert spec.classes == probe.classes
    assert "slide.svs (pink: " in spec.training_data
    assert "tiles under 2 shapes" in spec.training_data


def test_a_scene_is_taught_like_a_slide(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "scene.tif")
    bands = ("blue", "green", "red", "nir")
    model = write_model(tmp_path / "four.safetensors", bands=bands, patch=8)
    store = run(image, model, tmp_path / "scene.gigavim.zarr")
    drawn = [
        Annotation(LineString([(40, 40), (120, 200)]), "water"),
        Annotation(LineString([(200, 40), (300, 200)]), "meadow"),
    ]
    encoded = Encoded.of(store)
    probe = fit_probe(encoded, drawn)
    labels, _ = probe.map(encoded)
    assert (labels[4:-4, 4:18] == 1).mean() > 0.95
    assert (labels[4:-4, 22:-4] == 2).mean() > 0.95

    save_probe(tmp_path / "probe.safetensors", probe, store, model_of(store))
    again = run(image, tmp_path / "probe.safetensors", tmp_path / "again.gigavim.zarr")
    np.testing.assert_array_equal(again.values("labels/classify/0"), labels)


def test_accuracy_is_that_of_shapes_that_were_held_out(whole: ResultStore) -> None:
    encoded = Encoded.of(whole)
    probe = fit_probe(encoded, DRAWN)
    assert probe.folds == 2
    assert probe.accuracy is not None
    assert probe.accuracy > 0.9

    # Pink shapes called by either name: one tells nothing of the other.
    crossed = [
        Annotation(box(480, 420, 600, 520), "a"),
        Annotation(box(600, 420, 720, 520), "b"),
        Annotation(box(480, 520, 600, 620), "b"),
        Annotation(box(600, 520, 720, 620), "a"),
    ]
    misled = fit_probe(encoded, crossed)
    assert misled.accuracy is not None
    assert misled.accuracy < 0.75

    assert fit_probe(encoded, DRAWN[:2]).accuracy is None


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (DRAWN[:1], "'pink' alone lies on patches"),
        ([*DRAWN[:1], Annotation(box(0, 0, 50, 50), "glass")], "'pink' alone lies on patches"),
        ([Annotation(box(0, 0, 50, 50), "glass")], "no class lies on patches"),
        ([], "of 0 shapes"),
    ],
)
def test_fewer_than_two_classes_are_one_clear_error(
    whole: ResultStore, drawn: list[Annotation], message: str
) -> None:
    with pytest.raises(GigavimError, match=message):
        fit_probe(Encoded.of(whole), drawn)


def test_a_store_without_features_is_one_clear_error(whole: ResultStore, tmp_path: Path) -> None:
    with (
        ResultStore.create(tmp_path / "new.gigavim.zarr", whole.attributes) as store,
        pytest.raises(StoreError, match="has no features yet"),
    ):
        Encoded.of(store)


def test_the_model_of_a_store_is_known_by_its_weights(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "models" / "mine.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    store = run(slide, moved, tmp_path / "slide.gigavim.zarr")
    assert model_of(store).path == moved

    renamed = moved.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(ModelError, match=r"made by the model mine .* not at hand; choose its file"):
        model_of(store)
    assert model_of(store, renamed).path == renamed
    other = write_model(tmp_path / "mine.safetensors", patch=8)
    with pytest.raises(ModelError, match="is not the model that made"):
        model_of(store, other)


def test_a_model_that_classifies_by_its_class_token_has_no_map_of_a_whole_image(
    whole: ResultStore, tmp_path: Path
) -> None:
    import torch

    from gigavim.checkpoint import Model, ModelSpec
    from gigavim.encoder import VisionMamba, VisionMambaConfig

    torch.manual_seed(0)
    config = VisionMambaConfig(image_size=64, patch=16, stride=16, width=32, depth=2, classes=0)
    spec = ModelSpec(config, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Model(VisionMamba(config), spec, Path("token.safetensors"), "")
    probe: Probe = fit_probe(Encoded.of(whole), DRAWN)

    with pytest.raises(ModelError, match="--mode tiles"):
        save_probe(tmp_path / "probe.safetensors", probe, whole, model)


def test_a_probe_that_cannot_be_written_is_one_clear_error(
    whole: ResultStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    probe = fit_probe(Encoded.of(whole), DRAWN)

    with pytest.raises(StoreError, match="cannot write"):
        save_probe(tmp_path / "file" / "probe.safetensors", probe, whole, model_of(whole))
