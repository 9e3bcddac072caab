"""What happens to disks, sources and weights while a run goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigavim.config import Resources, RunConfig
from gigavim.errors import ModelError, SourceError
from gigavim.pipelines.report import Silent
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from gigavim.store.naming import store_path
from images import tissue, write_model, write_slide

pytestmark = pytest.mark.faults
CPU = Resources(device="cpu", readers=1)


class Meanwhile(Silent):
    """Does something once, after the first block."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        if self._act is not None:
            act, self._act = self._act, None
            act()


def overwrite(slide: Path) -> None:
    write_slide(slide, tissue(1024, 1536, seed=7))


def change_a_byte(slide: Path) -> None:
    """In the middle, where no sample of the fingerprint need be."""
    with slide.open("r+b") as file:
        file.seek(-2000, 2)
        file.write(b"\x00")
    os.utime(slide, ns=(1, 1))


@pytest.mark.parametrize("happens", [overwrite, change_a_byte, Path.unlink])
def test_a_source_that_changes_or_goes_under_a_run_is_noticed(
    tmp_path: Path, happens: Callable[[Path], None]
) -> None:
    slide = write_slide(tmp_path / "slide.svs")
    model = write_model(tmp_path / "model.safetensors")
    place = tmp_path / "slide.gigavim.zarr"
    with pytest.raises(SourceError, match=r"slide\.svs changed while it was read"):
        run_image(
            str(slide), place, RunConfig(model=str(model), heads=("features",)), CPU,
            progress=Meanwhile(lambda: happens(slide)),
        )  # fmt: skip
    assert not ResultStore.open(place).complete


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders are closed otherwise there")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.svs")
    model = write_model(tmp_path / "model.safetensors")
    output = tmp_path / "output"
    output.mkdir(mode=0o500)
    command = [sys.executable, "-m", "gigavim", "run", str(slide), "-m", str(model)]
    if os.geteuid() == 0:
        # Root may write anywhere, until it gives that right away.
        if shutil.which("setpriv") is None:
            pytest.skip("root may write, and there is no setpriv")
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    run = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.fullmatch(r"gigavim: cannot write .*output.*; .* -o\n", run.stderr)
    assert not list(output.iterdir())


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_weights_that_are_not_numbers_give_no_result(tmp_path: Path, mode: str) -> None:
    slide = write_slide(tmp_path / "slide.svs")
    model = write_model(tmp_path / "model.safetensors")
    with safetensors.safe_open(model, "pt") as content:
        weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        about = content.metadata()
    largest = max(weights, key=lambda name: weights[name].numel())
    weights[largest] = torch.full_like(weights[largest], torch.nan)
    safetensors.torch.save_file(weights, model, about)
    with pytest.raises(ModelError, match=rf"model\.safetensors.*{largest}.*not finite"):
        run_image(
            str(slide), tmp_path / "a.gigavim.zarr", RunConfig(model=str(model), mode=mode), CPU
        )


@given(st.text(min_size=1))
def test_no_name_of_an_image_leads_out_of_the_folder_for_results(name: str) -> None:
    place = os.path.normpath(store_path(name, Path("results"), alone=False))
    assert Path(place).parts[0] == "results"
    assert Path(place).parent == Path("results")


def test_tokens_of_rotten_tiles_are_the_ones_that_are_missing(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.svs", break_tile=9)  # row 1, column 3 of six
    model = write_model(tmp_path / "model.safetensors")
    place = tmp_path / "slide.gigavim.zarr"
    # A token is a tile of the file.
    config = RunConfig(model=str(model), spacing=8.0, read_all=True, heads=("features",))
    summary = run_image(str(slide), place, config, CPU)
    store = ResultStore.open(place)
    bad = store.values("tokens/valid") == 0
    assert store.values("tokens/grid_index")[bad].tolist() == [[1, 3]]
    assert not store.values("tokens/features")[bad].any()
    assert np.all(store.values("tokens/features")[~bad].any(1))
    assert (summary.read_errors, summary.unreadable_tokens) == (1, 1)
    assert (store.values("errors/x").tolist(), store.values("errors/y").tolist()) == ([768], [256])
