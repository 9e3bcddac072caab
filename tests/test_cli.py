from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import zarr
from typer.testing import CliRunner

from gigavim.cli import app
from gigavim.cli.export import Format
from gigavim.pipelines.export import FORMATS
from images import tissue, write_model, write_scene, write_slide

runner = CliRunner()


def gigavim(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command here; return exit code, stdout and stderr."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.svs")


def test_a_run_prints_where_to_look(slide: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = gigavim("run", slide, "-m", model, "-o", tmp_path / "out")
    assert code == 0
    for file in ("slide.gigavim.zarr", "slide.clusters.png"):
        assert str(tmp_path / "out" / file) in out
        assert (tmp_path / "out" / file).exists()
    assert "peak" in out


def test_the_summary_is_json_on_demand(slide: Path, model: Path, tmp_path: Path) -> None:
    code, out, _ = gigavim("run", slide, "-m", model, "-o", tmp_path / "out", "--json")
    (summary,) = json.loads(out)["images"]
    assert code == 0
    assert summary["status"] == "complete"
    assert summary["tokens"] > 0
    assert {"read", "decode", "encode", "write"} <= summary["stages"].keys()


def test_quiet_says_nothing_not_even_a_warning(slide: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "far.safetensors", spacing=50.0)
    command = ("run", slide, "-m", model, "-o", tmp_path / "out", "--spacing", "0.5")
    assert "WARNING" in gigavim(*command)[2]
    code, out, err = gigavim(*command, "--force", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_a_log_goes_to_a_file(slide: Path, model: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    gigavim("run", slide, "-m", model, "-o", tmp_path / "out", "--log-file", log)
    assert "slide.svs" in log.read_text()


def test_a_bad_image_costs_the_others_nothing(slide: Path, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.svs"
    text.write_text("not an image")
    missing = tmp_path / "missing.svs"
    code, out, err = gigavim("run", text, slide, missing, "-m", model, "-o", tmp_path / "out")
    assert code == 1
    assert "slide.svs: done" in out
    assert "2 of 3 images failed" in err
    assert str(text) in err
    assert str(missing) in err
    assert "Traceback" not in err
    assert (tmp_path / "out/slide.gigavim.zarr").exists()
    assert not (tmp_path / "out/text.gigavim.zarr").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("no image at all"), "not|no "),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: _truncated(path), "cut short"),
        (lambda path: write_slide(path, mpp=None), "--source-spacing"),
        (lambda path: path.mkdir(), "no "),
    ],
    ids=["text", "empty", "truncated", "no spacing", "an empty folder"],
)
def test_bad_input_gets_one_line_that_names_it(
    make: object, says: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.svs"
    make(path)  # type: ignore[operator]
    code, out, err = gigavim("run", path, "-m", model, "-o", tmp_path / "out")
    assert code == 1
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("gigavim: ")
    assert str(path) in line
    assert any(word in line for word in says.split("|"))
    assert not list((tmp_path / "out").glob("*.zarr"))


def _truncated(path: Path) -> None:
    write_slide(path)
    path.write_bytes(path.read_bytes()[:2000])


def test_an_unknown_band_is_named_with_those_there_are(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    model = write_model(tmp_path / "m.safetensors", bands=("blue", "green", "red", "nir"))
    code, _, err = gigavim("run", scene, "-m", model, "--bands", "blue,thermal", "-o", tmp_path)
    assert code == 1
    assert "'thermal'" in err
    assert "nir" in err


def test_a_raster_without_a_crs_runs_when_its_spacing_is_told(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", crs=None)
    model = write_model(tmp_path / "m.safetensors", bands=("blue", "green", "red", "nir"))
    code, _, err = gigavim("run", scene, "-m", model, "-o", tmp_path / "out")
    assert code == 1
    assert "scene.tif" in err
    assert "--source-spacing" in err


def test_a_batch_takes_what_a_run_takes_and_means_the_same(tmp_path: Path, model: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    run, batch = ({item.name for item in commands[name].params} for name in ("run", "batch"))
    assert run <= batch
    scene = write_scene(tmp_path / "scene.tif")
    part = ("-m", model, "--bounds", "600000,5298000,602000,5300000", "--mode", "whole")
    rest = ("--no-mask", "--bands", "1,2,3", "--spacing", "20", "--source-spacing", "10")
    stored = []
    for command in ("run", "batch"):
        code, _, err = gigavim(command, scene, "-o", tmp_path / command, *part, *rest)
        assert code == 0, err
        about = zarr.open_group(tmp_path / command / "scene.gigavim.zarr").attrs["gigavim"]
        stored.append((about["configuration"], about["grid"]))
    assert stored[0] == stored[1]
    assert stored[0][0]["bounds"] == [600000, 5298000, 602000, 5300000]


def test_a_wrong_checkpoint_is_refused_in_one_line(slide: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(write_model(tmp_path / "m.safetensors"))
    tensors["norm_f.weight"] = tensors["norm_f.weight"][:5].clone()
    wrong = tmp_path / "wrong.safetensors"
    save_file(tensors, wrong)
    code, _, err = gigavim("run", slide, "-m", wrong, "-o", tmp_path / "out")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "wrong.safetensors" in err


def test_a_folder_that_cannot_be_written_is_named(slide: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = gigavim("run", slide, "-m", model, "-o", tmp_path / "file/out")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "cannot write" in err


def test_a_traceback_is_shown_on_demand(tmp_path: Path, model: Path) -> None:
    _, _, err = gigavim("run", tmp_path / "missing.svs", "-m", model, "--debug")
    assert "Traceback" in err


def test_info_says_what_a_run_would_read(slide: Path, model: Path) -> None:
    code, out, _ = gigavim("info", slide, "-m", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["size"] == {"width": 1536, "height": 1024, "megapixels": 1536 * 1024 / 1e6}
    assert facts["spacing"] == {"x": 0.5, "y": 0.5, "unit": "µm", "taken_from": "aperio.MPP"}
    assert facts["run"]["tokens"] > 0
    assert facts["run"]["seconds"] > 0
    assert facts["run"]["memory_bytes"] > 0


def test_info_says_why_a_run_is_not_possible(tmp_path: Path, model: Path) -> None:
    mute = write_slide(tmp_path / "mute.svs", mpp=None)
    code, out, _ = gigavim("info", mute, "-m", model)
    assert code == 0
    assert "1,536" in out
    assert "--source-spacing" in out


def test_doctor_names_devices_and_kernel() -> None:
    code, out, _ = gigavim("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["kernels"][0]["scan"] in ("c", "torch")
    assert facts["kernels"][0]["reason"]


def test_models_lists_what_can_be_run() -> None:
    code, out, _ = gigavim("models", "--json")
    names = {model["name"]: model for model in json.loads(out)}
    assert code == 0
    assert names["slide-mini"]["shipped"]
    assert names["scene-mini"]["shipped"]
    assert not names["vim_tiny"]["shipped"]


def _command(*arguments: str | Path, before: str = "pass") -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    code = f"import sys; {before}; sys.argv[0] = 'gigavim'; from gigavim.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits a file's size as Unix does")
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_that_looks_finished(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    process = _command("run", slide, "-m", model, "-o", tmp_path / "out", before=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1
    assert "cannot write" in err
    store = zarr.open_group(tmp_path / "out/slide.gigavim.zarr", mode="r")
    assert store.attrs["gigavim"]["status"] != "complete"
    code, out, _ = gigavim("run", slide, "-m", model, "-o", tmp_path / "out")
    assert code == 0
    assert "slide.svs:" in out


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts as a Unix terminal does")
def test_ctrl_c_stops_in_one_line_and_the_same_command_continues(
    model: Path, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "large.svs", tissue(6144, 4096))
    arguments = ("run", slide, "-m", model, "-o", tmp_path / "out", "--readers", "1")
    # Whatever starts the tests may ignore interrupts, as a shell does for what it runs behind.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = _command(*arguments, before=listening)
    state = tmp_path / "out/large.gigavim.zarr/state"
    while process.poll() is None and not list(state.glob("*.npz")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines() == ["interrupted; the same command continues where it stopped"]
    code, out, _ = gigavim(*arguments)
    assert code == 0
    assert "resumed and finished" in out


def test_importing_gigavim_is_cheap() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, gigavim; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"torch", "dask", "zarr", "rasterio", "openslide", "skimage", "napari"} & set(loaded)


def test_every_format_can_be_asked_for() -> None:
    assert {each.value for each in Format} == set(FORMATS)
