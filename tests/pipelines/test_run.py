from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr
from PIL import Image

from gigavim.checkpoint import load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError, ModelError, StoreBusyError
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from images import ORIGIN, tissue, write_model, write_scene, write_slide

CPU = Resources(device="cpu")


def features_by_place(store: Path) -> dict[tuple[int, int], np.ndarray]:
    group = zarr.open_group(store, mode="r")
    index, features = group["tokens/grid_index"][:], group["tokens/features"][:]
    return {(int(r), int(c)): f for (r, c), f in zip(index, features, strict=True)}


def same(a: Path, b: Path) -> None:
    """Two stores hold the same result, to the bit."""
    first, second = zarr.open_group(a, mode="r"), zarr.open_group(b, mode="r")
    arrays = {name for name, item in first.members(max_depth=None) if isinstance(item, zarr.Array)}
    assert arrays == {n for n, i in second.members(max_depth=None) if isinstance(i, zarr.Array)}
    for name in arrays:
        np.testing.assert_array_equal(first[name][...], second[name][...], err_msg=name)


class Stops:
    """Progress that is interrupted after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, title: str, tokens: int) -> None:
        pass

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(slide: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one run of the slide, as one sequence."""
    store = tmp_path_factory.mktemp("whole") / "slide.gigavim.zarr"
    summary = run_image(str(slide), store, RunConfig(model=str(model)), CPU)
    assert summary.status == "complete"
    return store


def test_patches_lie_where_the_tissue_lies(whole: Path) -> None:
    coords = zarr.open_group(whole, mode="r")["tokens/coords"][:]
    centre = coords + 8
    inside = ((centre[:, 0] / 1536 - 0.5) / 0.25) ** 2 + ((centre[:, 1] / 1024 - 0.5) / 0.25) ** 2
    assert inside.max() < 1.25
    assert len(coords) == pytest.approx(np.pi * 384 * 256 / 16**2, rel=0.1)


def test_features_are_those_of_the_model_on_the_whole_sequence(
    whole: Path, slide: Path, model: Path
) -> None:
    group = zarr.open_group(whole, mode="r")
    encoder = load_model(model).encoder
    # JPEG is decoded by Pillow here, and read at once, so nothing of the run is used to check it.
    import tifffile

    image = tifffile.imread(slide)
    patches = np.stack([image[y : y + 16, x : x + 16] for x, y in group["tokens/coords"][:]])
    pixels = torch.from_numpy((patches / 255 - 0.5) / 0.25).float()
    with torch.inference_mode():
        expected = encoder.mix(encoder.embed(pixels)[None])
    np.testing.assert_allclose(
        group["tokens/features"][:], expected.tokens[0], rtol=0.02, atol=0.02
    )
    np.testing.assert_allclose(group["image/vector"][:], expected.vector[0], rtol=0.01, atol=0.01)


def test_each_tile_is_a_sequence_of_its_own(slide: Path, model: Path, tmp_path: Path) -> None:
    import tifffile

    store = tmp_path / "tiles.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model), mode="tiles"), CPU)
    group = zarr.open_group(store, mode="r")
    image = tifffile.imread(slide)
    encoder = load_model(model).encoder
    for number in (0, group["tiles/coords"].shape[0] // 2):
        x, y = group["tiles/coords"][number]
        assert (x % 64, y % 64) == (0, 0)
        tile = (image[y : y + 64, x : x + 64] / 255 - 0.5) / 0.25
        patches = torch.from_numpy(tile).float().view(4, 16, 4, 16, 3).transpose(1, 2).flatten(0, 1)
        with torch.inference_mode():
            expected = encoder.mix(encoder.embed(patches)[None]).vector[0]
        np.testing.assert_allclose(group["tiles/vectors"][number], expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("resources", [Resources("cpu", 1), Resources("cpu", 3)])
def test_readers_do_not_change_the_result(
    whole: Path, slide: Path, model: Path, tmp_path: Path, resources: Resources
) -> None:
    store = tmp_path / "again.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model)), resources)
    same(whole, store)


def test_chunks_do_not_change_the_result(
    whole: Path, slide: Path, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "chunks.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model)), replace(CPU, chunk=97))
    expected, found = features_by_place(whole), features_by_place(store)
    for place, feature in expected.items():
        np.testing.assert_allclose(found[place], feature, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("order", ["snake", "hilbert", "tile-major", "column-major"])
def test_every_order_reads_the_same_patches(
    whole: Path, slide: Path, model: Path, tmp_path: Path, order: str
) -> None:
    store = tmp_path / "order.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model), order=order), CPU)
    assert features_by_place(store).keys() == features_by_place(whole).keys()
    assert zarr.open_group(store, mode="r")["tokens"].attrs["order"] == order


@pytest.mark.parametrize("mode", ["whole", "tiles"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_continues_to_the_same_result(
    slide: Path, model: Path, tmp_path: Path, mode: str, after: int
) -> None:
    # At 0.5 µm the slide is two blocks, so the three moments are: early, late, and while mixing.
    config = RunConfig(model=str(model), mode=mode)  # type: ignore[arg-type]
    unbroken, broken = tmp_path / "unbroken.gigavim.zarr", tmp_path / "broken.gigavim.zarr"
    run_image(str(slide), unbroken, config, CPU)
    try:
        run_image(str(slide), broken, config, CPU, progress=Stops(after))
    except KeyboardInterrupt:
        assert zarr.open_group(broken, mode="r").attrs["gigavim"]["status"] == "running"
        assert run_image(str(slide), broken, config, CPU).resumed
    same(unbroken, broken)
    assert not (broken / "state").exists()


def test_a_finished_run_is_skipped(whole: Path, slide: Path, model: Path) -> None:
    before = whole.stat().st_mtime_ns
    summary = run_image(str(slide), whole, RunConfig(model=str(model)), CPU)
    assert summary.status == "skipped"
    assert whole.stat().st_mtime_ns == before


def test_another_configuration_is_not_mixed_in(whole: Path, slide: Path, model: Path) -> None:
    with pytest.raises(GigavimError, match=r"clusters 8, now 3.*--force"):
        run_image(str(slide), whole, RunConfig(model=str(model), clusters=3), CPU)


def test_force_starts_over(slide: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "slide.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model)), CPU)
    again = run_image(str(slide), store, RunConfig(model=str(model), clusters=3), CPU, force=True)
    assert again.status == "complete"
    assert len(again.classes) == 3


def test_a_second_run_on_a_store_is_refused_while_the_first_lives(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "slide.gigavim.zarr"
    config = RunConfig(model=str(model))

    class Meddles(Stops):
        def advance(self, tokens: int, megapixels: float = 0.0) -> None:
            with pytest.raises(StoreBusyError, match="being written"):
                run_image(str(slide), store, config, CPU)

    assert run_image(str(slide), store, config, CPU, progress=Meddles(0)).status == "complete"


def test_an_unreadable_tile_is_left_out_and_recorded(model: Path, tmp_path: Path) -> None:
    # The tile at row 1, column 2 lies inside the tissue.
    broken = write_slide(tmp_path / "broken.svs", break_tile=1 * 6 + 2)
    store = tmp_path / "broken.gigavim.zarr"
    summary = run_image(str(broken), store, RunConfig(model=str(model)), CPU)
    group = zarr.open_group(store, mode="r")
    x, y = group["tokens/coords"][:].T
    lost = (x >= 512) & (x < 768) & (y >= 256) & (y < 512)
    assert lost.any()
    np.testing.assert_array_equal(group["tokens/valid"][:] == 0, lost)
    assert summary.unreadable_tokens == lost.sum()
    assert not group["tokens/features"][:][lost].any()
    error = {name: group[f"errors/{name}"][:].tolist() for name in ("x", "y", "w", "h", "level")}
    assert error == {"x": [512], "y": [256], "w": [256], "h": [256], "level": [0]}
    labels = group["labels/clusters/0"][:]
    assert not labels[16:32, 32:48].any()


def test_the_map_of_a_scene_lies_on_its_land(
    scene: Path, scene_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "scene.gigavim.zarr"
    config = RunConfig(model=str(scene_model), clusters=2)
    summary = run_image(str(scene), store, config, CPU)
    assert summary.geotiff is not None
    with rasterio.open(summary.geotiff) as raster:
        labels = raster.read(1)
        assert raster.transform == rasterio.Affine(80, 0, ORIGIN[0], 0, -80, ORIGIN[1])
        assert raster.crs.to_epsg() == 32632
    # 256 x 320 px in patches of 8: a rim of two patches of nodata, water to column 20, then meadow.
    assert labels.shape == (32, 40)
    rim = np.ones_like(labels, bool)
    rim[2:-2, 2:-2] = False
    assert not labels[rim].any()
    left, right = labels[2:-2, 2:20], labels[2:-2, 20:-2]
    assert len(np.unique(left)) == len(np.unique(right)) == 1
    assert {left[0, 0], right[0, 0]} == {1, 2}


def test_the_overlay_shows_the_map_on_the_tissue(whole: Path) -> None:
    overlay = Image.open(whole.with_name("slide.clusters.png"))
    assert min(overlay.size) > 200
    assert len(overlay.getcolors(1 << 24) or []) > 100


def test_a_store_says_what_it_is(whole: Path, slide: Path) -> None:
    about = zarr.open_group(whole, mode="r").attrs["gigavim"]
    assert about["status"] == "complete"
    assert about["source"]["uri"] == str(slide)
    assert about["spacing"]["achieved"] == [0.5, 0.5]
    assert about["spacing"]["origin"] == "aperio.MPP"
    assert len(about["model"]["weights_sha256"]) == 64
    assert about["peak_memory_bytes"] > 0
    json.dumps(about)


def test_the_spacing_asked_for_is_the_spacing_read(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "coarse.gigavim.zarr"
    config = RunConfig(model=str(model), spacing=1.25)
    summary = run_image(str(slide), store, config, CPU)
    assert summary.spacing == pytest.approx((1.25, 1.25))
    coords = zarr.open_group(store, mode="r")["tokens/coords"][:]
    assert not (coords % 40).any()  # 16 px of 1.25 µm are 40 of 0.5 µm


def test_no_tissue_is_an_error_that_leaves_nothing(model: Path, tmp_path: Path) -> None:
    glass = write_slide(tmp_path / "glass.svs", np.full((512, 512, 3), 243, np.uint8))
    with pytest.raises(GigavimError, match=r"glass.svs: no tissue.*--no-mask"):
        run_image(str(glass), tmp_path / "glass.gigavim.zarr", RunConfig(model=str(model)), CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["glass.svs"]


def test_a_scene_without_valid_pixels_is_an_error(scene_model: Path, tmp_path: Path) -> None:
    empty = write_scene(tmp_path / "empty.tif", empty=True)
    config = RunConfig(model=str(scene_model))
    with pytest.raises(GigavimError, match=r"empty.tif: no valid pixel"):
        run_image(str(empty), tmp_path / "empty.gigavim.zarr", config, CPU)


def test_a_finer_spacing_than_the_source_is_refused(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=str(model), spacing=0.25)
    with pytest.raises(GigavimError, match=r"finer than its 0.5; ask for --spacing 0.5"):
        run_image(str(slide), tmp_path / "fine.gigavim.zarr", config, CPU)


def test_a_slide_without_spacing_is_refused_until_told(model: Path, tmp_path: Path) -> None:
    mute = write_slide(tmp_path / "mute.svs", mpp=None)
    store, config = tmp_path / "mute.gigavim.zarr", RunConfig(model=str(model))
    with pytest.raises(GigavimError, match=r"mute.svs .*--source-spacing"):
        run_image(str(mute), store, config, CPU)
    told = replace(config, source_spacing=(0.5, 0.5))
    assert run_image(str(mute), store, told, CPU).status == "complete"


def test_bands_are_found_by_name_and_missing_ones_named(
    scene: Path, scene_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "scene.gigavim.zarr"
    config = RunConfig(model=str(scene_model), bands=("nir", "red", "swir1"))
    with pytest.raises(
        GigavimError, match=r"no band 'swir1'; it has 1 blue, 2 green, 3 red, 4 nir"
    ):
        run_image(str(scene), store, config, CPU)
    shuffled = RunConfig(model=str(scene_model), bands=("nir", "red", "green", "blue"))
    plain = tmp_path / "plain.gigavim.zarr"
    run_image(str(scene), store, shuffled, CPU)
    run_image(str(scene), plain, RunConfig(model=str(scene_model)), CPU)
    np.testing.assert_array_equal(
        zarr.open_group(store, mode="r")["tokens/features"][:],
        zarr.open_group(plain, mode="r")["tokens/features"][:],
    )


def test_an_rgb_model_reads_the_rgb_of_a_scene(scene: Path, model: Path, tmp_path: Path) -> None:
    summary = run_image(str(scene), tmp_path / "s.gigavim.zarr", RunConfig(model=str(model)), CPU)
    assert summary.status == "complete"


def test_a_model_of_bands_that_a_slide_lacks_is_refused(slide: Path, tmp_path: Path) -> None:
    infrared = write_model(tmp_path / "ir.safetensors", bands=("nir", "swir1"))
    with pytest.raises(GigavimError, match=r"takes nir, swir1, and it has red, green, blue"):
        run_image(str(slide), tmp_path / "s.gigavim.zarr", RunConfig(model=str(infrared)), CPU)


def test_a_slide_wholly_unreadable_is_an_error(model: Path, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "rotten.svs", tissue(256, 256), break_tile=0)
    with pytest.raises(GigavimError, match=r"rotten\.svs"):
        run_image(str(path), tmp_path / "rotten.gigavim.zarr", RunConfig(model=str(model)), CPU)


def test_a_recompressed_twin_gets_the_same_map(shared: Path, tmp_path: Path) -> None:
    """The DICOM series was compressed once more; its pixels differ by 3 grey levels on average."""
    from sklearn.metrics import adjusted_rand_score

    slides = shared / "data/slides"
    twins = (slides / "CMU-1-Small-Region.svs", next(slides.glob("CMU-1-Small-Region-dicom/*.dcm")))
    maps, vectors = [], []
    for number, path in enumerate(twins):
        store = tmp_path / f"{number}.gigavim.zarr"
        run_image(str(path), store, RunConfig(spacing=2.0), CPU)
        group = zarr.open_group(store, mode="r")
        maps.append(group["labels/clusters/0"][:])
        vectors.append(group["image/vector"][:])
    both = (maps[0] > 0) & (maps[1] > 0)
    assert both.sum() >= 0.99 * max((maps[0] > 0).sum(), (maps[1] > 0).sum())
    assert adjusted_rand_score(maps[0][both], maps[1][both]) > 0.8
    np.testing.assert_allclose(vectors[0], vectors[1], atol=0.03 * np.abs(vectors[0]).max())


def test_reading_all_of_a_scene_without_valid_pixels_is_an_error_too(
    scene_model: Path, tmp_path: Path
) -> None:
    empty = write_scene(tmp_path / "empty.tif", empty=True)
    config = RunConfig(model=str(scene_model), read_all=True)
    with pytest.raises(GigavimError, match=r"empty.tif: it has no valid pixel"):
        run_image(str(empty), tmp_path / "empty.gigavim.zarr", config, CPU)


def test_products_in_half_precision_change_features_little(
    whole: Path, slide: Path, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "half.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model), precision="bfloat16"), CPU)
    exact = zarr.open_group(whole, mode="r")["tokens/features"][:].astype(np.float32)
    half = zarr.open_group(store, mode="r")["tokens/features"][:].astype(np.float32)
    assert np.linalg.norm(half - exact) < 0.02 * np.linalg.norm(exact)


def test_workers_share_an_image_to_the_same_features(
    whole: Path, slide: Path, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "shared.gigavim.zarr"
    run_image(str(slide), store, RunConfig(model=str(model)), replace(CPU, workers=2))
    expected, found = zarr.open_group(whole, mode="r"), zarr.open_group(store, mode="r")
    np.testing.assert_allclose(
        found["tokens/features"][:], expected["tokens/features"][:], rtol=2e-3, atol=2e-3
    )
    np.testing.assert_allclose(found["image/vector"][:], expected["image/vector"][:], atol=1e-4)
    assert not (store / "state").exists()


@pytest.mark.parametrize("workers", [None, 2])
def test_a_state_that_is_not_finite_stops_the_run_without_a_word_too_many(
    slide: Path, tmp_path: Path, workers: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    wild = load_model(write_model(tmp_path / "wild.safetensors"))
    with torch.no_grad():
        wild.encoder.layers[1].mixer.in_proj.weight.mul_(1e30)
    save_model(wild.path, wild.encoder, wild.spec)
    store = tmp_path / "wild.gigavim.zarr"
    config = RunConfig(model=str(wild.path))
    with pytest.raises(ModelError, match="state of layer 2 of 2 became infinite or NaN"):
        run_image(str(slide), store, config, replace(CPU, workers=workers))
    assert capfd.readouterr() == ("", "")
    assert not ResultStore.open(store).complete


def test_workers_do_not_share_tiles(slide: Path, model: Path, tmp_path: Path) -> None:
    config = RunConfig(model=str(model), mode="tiles")
    with pytest.raises(GigavimError, match="--mode whole"):
        run_image(str(slide), tmp_path / "t.gigavim.zarr", config, replace(CPU, workers=2))


def test_a_part_of_a_scene_is_the_same_part_of_its_map(
    scene: Path, scene_model: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=str(scene_model), mode="tiles")
    west, north = ORIGIN
    part = replace(config, bounds=(west + 320, north - 1600, west + 1600, north - 320))
    stores = {name: tmp_path / f"{name}.gigavim.zarr" for name in ("whole", "part")}
    run_image(str(scene), stores["whole"], config, CPU)
    run_image(str(scene), stores["part"], part, CPU)
    group = zarr.open_group(stores["part"], mode="r")
    assert group["labels/foreground/0"].attrs["spatial:transform"][2] == west + 320
    assert group["labels/foreground/0"].shape == (16, 16)
    # 320 m are four patches of eight pixels.
    everything = zarr.open_group(stores["whole"], mode="r")["labels/foreground/0"][:]
    np.testing.assert_array_equal(group["labels/foreground/0"][:], everything[4:20, 4:20])
