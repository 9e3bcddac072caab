from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from rasterio.env import set_gdal_config

from gigavim.checkpoint import ModelSpec, save_model
from gigavim.config import Resources, RunConfig, parse_bytes
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.mixer import TILE
from gigavim.pipelines import memory
from gigavim.pipelines.memory import Costs, Memory, MemoryPlan, fit, plan_memory
from gigavim.pipelines.plan import Plan, make_plan, set_up
from gigavim.pipelines.run import run_image
from gigavim.sources.gdal_cache import CACHE, cache_limit
from images import SCENE_BANDS, write_model, write_scene

GIB = 2**30
CPU = Resources(device="cpu")


@pytest.fixture(scope="module")
def plan(slide: Path, model: Path) -> Plan:
    return make_plan(set_up(str(slide), RunConfig(model=str(model), heads=("features",))))


def same(a: Path, b: Path) -> None:
    first, second = zarr.open_group(a, mode="r"), zarr.open_group(b, mode="r")
    for name in ("tokens/features", "tokens/valid", "image/vector"):
        np.testing.assert_array_equal(first[name][...], second[name][...], err_msg=name)


def test_without_a_limit_a_run_takes_a_part_of_what_is_free(plan: Plan) -> None:
    found = plan_memory(plan, CPU)
    assert found.expected <= found.limit
    assert found.residual_on == "host"
    assert found.device_limit is None


def test_a_limit_too_small_is_refused_with_the_smallest_that_works(plan: Plan) -> None:
    with pytest.raises(GigavimError, match=r"smallest that works is \d+MiB") as error:
        plan_memory(plan, replace(CPU, max_memory=10 * 2**20))
    smallest = parse_bytes(str(error.value).rsplit(" ", 1)[1])
    found = plan_memory(plan, replace(CPU, max_memory=smallest))
    assert found.expected <= found.limit == smallest


def test_gdal_keeps_no_more_than_a_run_counts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    model = write_model(tmp_path / "m.safetensors", bands=SCENE_BANDS)
    scene = str(write_scene(tmp_path / "scene.tif"))
    config = RunConfig(model=str(model), heads=("features",))
    # As on a machine with much memory.
    set_gdal_config("GDAL_CACHEMAX", 8 * GIB)
    large = set_up(scene, config)
    assert cache_limit() == CACHE
    expected = plan_memory(make_plan(large), CPU).expected
    # What a user asks for is left, and counted.
    monkeypatch.setenv("GDAL_CACHEMAX", "1024")
    set_gdal_config("GDAL_CACHEMAX", GIB)
    more = plan_memory(make_plan(set_up(scene, config)), CPU).expected
    assert more - expected == pytest.approx(GIB - CACHE, abs=64 * 2**20)
    set_gdal_config("GDAL_CACHEMAX", CACHE)


def test_less_memory_gives_shorter_chunks_then_the_disk(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sequence of ten million tokens, as far as memory is concerned.
    monkeypatch.setattr(memory, "rows_of", lambda encoder, length: 10**7)
    monkeypatch.setattr(memory, "IN_MEMORY", 10**8)
    plans = [
        plan_memory(plan, replace(CPU, max_memory=64 * GIB)),
        plan_memory(plan, replace(CPU, max_memory=psutil.Process().memory_info().rss + GIB)),
    ]
    assert [found.residual_on for found in plans] == ["host", "disk"]
    assert all(found.expected <= found.limit for found in plans)
    assert all(found.chunk % TILE == 0 for found in plans)
    assert plans[1].scratch == 2 * 32 * 4 * (10**7 + plans[1].chunk)


@pytest.mark.parametrize("rows", [1, 5000, 11_000, 10**6])
def test_the_limit_never_cuts_a_tile(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(memory, "rows_of", lambda encoder, length: rows)
    # Mixing alone decides, and the smallest limit is named to the MiB.
    monkeypatch.setattr(memory, "_reading", lambda plan, readers: 0)
    monkeypatch.setattr(memory, "_rounded", lambda count: count)
    with pytest.raises(GigavimError) as error:
        plan_memory(plan, replace(CPU, max_memory=1))
    smallest = parse_bytes(str(error.value).rsplit(" ", 1)[1])
    chunks = [
        plan_memory(plan, replace(CPU, max_memory=smallest + spare)).chunk
        for spare in (2**20, 2**21, 2**22, 2**23, 2**30)
    ]
    assert all(chunk >= TILE and chunk % TILE == 0 for chunk in chunks)
    assert chunks == sorted(chunks)
    assert chunks[-1] == min(8 * TILE, -(-rows // TILE) * TILE)
    assert rows < 10**6 or chunks[0] < chunks[-1]


# Vim-Ti with a sequence of a gigapixel slide; for the GPU only the numbers are needed.
COSTS = Costs(
    rows=10**7, tables=(768, 768), part=3 * 768, working=14 * 1536, host=2**30, host_beside=2**28,
    weights=28 * 2**20, embedding=2**26,
)  # fmt: skip


def on_gpu(host: int | None, device: int | None, free: int = 80 * GIB) -> MemoryPlan:
    taken = Memory(2**28, 200 * GIB, host), Memory(COSTS.weights, free, device)
    return fit("slide.svs", COSTS, *taken)


def test_the_residual_stream_waits_where_it_fits_first() -> None:
    # Its tables take 14.5 GiB, page-locked twice 8 GiB.
    plans = [on_gpu(64 * GIB, 32 * GIB), on_gpu(64 * GIB, 8 * GIB), on_gpu(16 * GIB, 8 * GIB)]
    assert [found.residual_on for found in plans] == ["device", "host", "disk"]
    assert [found.scratch > 0 for found in plans] == [False, False, True]
    assert plans[1].expected > 17 * GIB > plans[0].expected
    assert {found.chunk for found in plans} == {2**17}


@given(
    host=st.integers(2, 80).map(lambda count: count * GIB),
    device=st.integers(100, 40_000).map(lambda count: count * 2**20),
    free=st.integers(2, 80).map(lambda count: count * GIB),
)
def test_a_plan_keeps_to_both_limits(host: int, device: int, free: int) -> None:
    found = on_gpu(host, device, free)
    assert found.expected <= found.limit == host
    assert found.device_expected is not None
    assert found.device_limit is not None
    assert found.device_expected <= found.device_limit <= device
    assert found.chunk % TILE == 0
    assert found.chunk <= 2**17


def test_a_gpu_is_given_chunks_that_suit_its_limit() -> None:
    chunks = [on_gpu(None, count * 2**20).chunk for count in (100, 500, 2000, 8000)]
    assert chunks == sorted(set(chunks))
    assert chunks[0] < 2 * TILE


def test_too_little_of_a_gpu_is_refused_with_the_smallest_that_works() -> None:
    with pytest.raises(
        GigavimError, match=r"--max-device-memory 10MiB is too little; the"
    ) as error:
        on_gpu(None, 10 * 2**20)
    smallest = parse_bytes(str(error.value).rsplit(" ", 1)[1])
    assert on_gpu(None, smallest).chunk == TILE
    with pytest.raises(GigavimError):
        on_gpu(None, smallest - 2**20)


def test_without_a_limit_a_gpu_gives_a_part_of_what_is_free() -> None:
    assert on_gpu(None, None, 10 * GIB).device_limit == COSTS.weights + 6 * GIB
    # It may be less than the user allows.
    assert on_gpu(None, 64 * GIB, 4 * GIB).device_limit == COSTS.weights + 4 * GIB


def test_on_the_cpu_a_limit_of_a_gpu_is_refused(plan: Plan) -> None:
    with pytest.raises(GigavimError, match="limits a GPU, and this run is on the CPU"):
        plan_memory(plan, replace(CPU, max_device_memory=8 * GIB))


def test_a_rotary_model_maps_an_image_of_any_grid(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=64, width=32, depth=2, state=4, classes=0, class_token="none",
        rope="tokens and residual", position="sincos",
    )  # fmt: skip
    file = tmp_path / "rotary.safetensors"
    spec = ModelSpec(
        config, mean=(0.5,) * 3, std=(0.25,) * 3, bands=("red", "green", "blue"), tile=64
    )
    save_model(file, VisionMamba(config), spec)
    stores = [tmp_path / "memory.gigavim.zarr", tmp_path / "disk.gigavim.zarr"]
    for store, rows in zip(stores, (10**6, 0), strict=True):
        monkeypatch.setattr(memory, "IN_MEMORY", rows)
        run_image(str(slide), store, RunConfig(model=str(file), heads=("features",)), CPU)
    same(*stores)
    attributes = zarr.open_group(stores[0], mode="r")["tokens"].attrs
    assert attributes["position"] == "sincos"
    assert attributes["rope"] == "tokens and residual"


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GiB", 4 * GIB), ("4G", 4 * GIB), ("3.5 gb", 3_500_000_000), ("700MiB", 700 * 2**20)],
)
def test_amounts_of_memory_are_written_as_people_do(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "4 XB", "-1GB", "1Gi"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of memory; write 4GiB"):
        parse_bytes(text)


class Stops:
    """Progress that is interrupted after so many steps of mixing."""

    def __init__(self, after: int) -> None:
        self.left, self.title = after, ""

    def start(self, title: str, tokens: int) -> None:
        self.title = title

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        self.left -= self.title == "mixing"
        if self.left == 0 and self.title == "mixing":
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 9, 27])
def test_a_run_continues_inside_an_image_to_the_same_bits(
    slide: Path, model: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    config = RunConfig(model=str(model), heads=("features",))
    resources = replace(CPU, chunk=150)
    unbroken, broken = tmp_path / "unbroken.gigavim.zarr", tmp_path / "broken.gigavim.zarr"
    run_image(str(slide), unbroken, config, resources)
    with pytest.raises(KeyboardInterrupt):
        run_image(str(slide), broken, config, resources, progress=Stops(after))
    assert (broken / "state/mixing/journal.safetensors").exists()
    assert run_image(str(slide), broken, config, resources).resumed
    same(unbroken, broken)
    assert not (broken / "state").exists()


def test_the_disk_gives_the_bits_of_memory(
    slide: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=str(model), heads=("features",))
    run_image(str(slide), tmp_path / "memory.gigavim.zarr", config, CPU)
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    run_image(str(slide), tmp_path / "disk.gigavim.zarr", config, CPU)
    same(tmp_path / "memory.gigavim.zarr", tmp_path / "disk.gigavim.zarr")


PROGRAM = """
import json, sys
from pathlib import Path
from gigavim.config import Resources, RunConfig
from gigavim.pipelines import memory, run
memory.IN_MEMORY = {in_memory}
plans = []
def planned(*args):
    plans.append(memory.plan_memory(*args))
    return plans[-1]
run.plan_memory = planned
resources = Resources("cpu", max_memory={limit})
run.run_image({image!r}, Path({store!r}), RunConfig("slide-mini", read_all=True), resources)
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps([peak, plans[0].expected, plans[0].chunk, plans[0].residual_on]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_the_peak_stays_under_the_limit(tmp_path: Path) -> None:
    from gigavim.sample import make_slide

    image = tmp_path / "slide.svs"
    make_slide(image, tiles=(20, 24))
    stores = []
    for limit, in_memory in ((4 * GIB, 2**17), (1400 * 2**20, 0)):
        stores.append(tmp_path / f"{limit}.gigavim.zarr")
        program = PROGRAM.format(
            in_memory=in_memory, image=str(image), store=str(stores[-1]), limit=limit
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=True,
        )
        peak, expected, _, residual_on = json.loads(done.stdout)
        assert residual_on == ("host" if in_memory else "disk")
        assert peak <= expected <= limit
    same(*stores)
