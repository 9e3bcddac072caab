"""What a run makes of faults in the image, and of another stain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gigavim.config import Resources, RunConfig
from gigavim.errors import SourceError
from gigavim.pipelines.plan import make_plan, set_up
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from images import tissue, write_scene, write_slide

CPU = Resources(device="cpu")
STROKE = np.s_[300:800, 560:760]


@pytest.fixture(scope="module")
def inked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with a stroke of green pen across its tissue."""
    image = tissue(1024, 1536)
    image[STROKE] = np.rint(image[STROKE] * (np.array([30, 130, 70]) / 245))
    return write_slide(tmp_path_factory.mktemp("inked") / "slide.svs", image, mpp=1.0)


def test_faults_are_mapped_and_told(inked: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "slide.gigavim.zarr"
    summary = run_image(str(inked), path, RunConfig(model=str(model)), CPU)
    assert summary.quality["pen"] > 0.1
    assert any(fault.startswith("pen") for fault in summary.faults)
    store = ResultStore.open(path)
    assert store.attributes["quality"]["shares"] == summary.quality
    (entries,) = [store.group["labels/qc"].attrs["ome"]["image-label"]["properties"]]
    pen = next(each["label-value"] for each in entries if each["class"] == "pen")
    where = np.argwhere(store.values("labels/qc/0") == pen)
    # Patches of 16 px of level 0.
    assert np.abs(where.mean(0) * 16 + 8 - (550, 660)).max() < 40


def test_faults_are_left_out_when_asked(inked: Path, model: Path) -> None:
    plans = [
        make_plan(set_up(str(inked), RunConfig(model=str(model), exclude_qc=exclude)))
        for exclude in (False, True)
    ]
    everything, rest = (set(map(tuple, plan.sequence.index.tolist())) for plan in plans)
    left_out = np.array(sorted(everything - rest))
    assert rest < everything
    assert (left_out[:, 1] * 16 + 8 > 500).all()
    assert (left_out[:, 1] * 16 + 8 < 820).all()


def test_another_stain_is_given_before_anything_else(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mixed = random.beta(0.5, 0.5, (64, 96)).repeat(16, 0).repeat(16, 1)[..., None]
    density = mixed * np.array([0.75, 0.62, 0.24]) + (1 - mixed) * np.array([0.22, 0.90, 0.38])
    image = np.rint(245 * np.exp(-0.6 * density)).astype(np.uint8)
    image[:, :300] = 245  # glass
    slide = str(write_slide(tmp_path / "slide.svs", image))
    plain, restained = (
        make_plan(set_up(slide, RunConfig(model=str(model), stain=stain)))
        for stain in (None, "macenko")
    )
    assert restained.reader.stain is not None
    window = plain.setup.grid.window(20, 40, 4, 4)
    scale, mean, std = plain.reader.scale, plain.reader.mean, plain.reader.std
    seen = restained.reader.stain(plain.setup.plane.read(window).values)
    expected = (seen * np.float32(scale) - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(restained.reader.pixels(window)[0], expected, atol=1e-5)
    assert np.abs(plain.reader.pixels(window)[0] - expected).mean() > 0.1


def test_a_scene_has_no_stain(model: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.raises(SourceError, match="stain"):
        make_plan(set_up(str(scene), RunConfig(model=str(model), stain="reinhard")))
