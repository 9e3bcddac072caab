from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gigavim.errors import StoreBusyError, StoreError
from gigavim.geometry import Level, Spacing, Window
from gigavim.georeference import Registration
from gigavim.sources.source import ReadError
from gigavim.store import ResultStore

SLIDE = Registration(16.0, 16.0, Spacing(0.5, 0.5, "µm", "test"))


def attributes(**settings: Any) -> dict[str, Any]:
    return {
        "version": "0.1",
        "configuration": {"mode": "whole", "bands": ("red", "green"), **settings},
        "model": {"id": "tiny", "weights_sha256": "abc"},
        "source": {"uri": "/data/slide.svs", "size": 12, "fingerprint": "def"},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slide.gigavim.zarr"


@contextmanager
def disk_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_store_says_what_made_it_and_when_it_is_complete(path: Path) -> None:
    with ResultStore.create(path, attributes()) as store:
        assert ResultStore.open(path).attributes["status"] == "running"
        store.finish(seconds=2.5, peak_memory_bytes=1000)
    said = ResultStore.open(path).attributes
    assert said["status"] == "complete"
    assert said["configuration"] == {"mode": "whole", "bands": ["red", "green"]}
    assert said["model"]["weights_sha256"] == "abc"
    assert said["source"]["uri"] == "/data/slide.svs"
    assert (said["seconds"], said["peak_memory_bytes"]) == (2.5, 1000)
    assert said["writer"]["pid"] == os.getpid()


def test_a_run_is_finished_only_once_it_says_so(path: Path) -> None:
    assert not ResultStore.is_finished(path, attributes())
    with ResultStore.create(path, attributes()) as store:
        assert not ResultStore.is_finished(path, attributes())
        store.finish()
    assert ResultStore.is_finished(path, attributes())


def test_a_run_resumes_at_the_block_it_reached(path: Path) -> None:
    tokens = np.arange(6, dtype=np.float32).reshape(2, 3)
    error = ReadError(2, Window(1, 2, 3, 4), "tile 7 cannot be decoded")
    with ResultStore.create(path, attributes()) as store:
        store.write_block(0, tokens, np.array([True, False]), [error])
        store.write_block(4, tokens[:0], np.zeros(0, np.bool_))
    with ResultStore.create(path, attributes()) as store:
        assert [store.block_done(block) for block in range(5)] == [True, False, False, False, True]
        held = store.read_block(0)
        np.testing.assert_array_equal(held.tokens, tokens)
        assert held.valid.tolist() == [True, False]
        assert held.errors == (error,)
        assert store.read_block(4).tokens.shape == (0, 3)


def test_what_a_resume_needs_is_gone_when_the_run_is_complete(path: Path) -> None:
    with ResultStore.create(path, attributes()) as store:
        store.write_block(0, np.ones((2, 3), np.float32), np.ones(2, np.bool_))
        store.finish()
    assert [entry.name for entry in path.iterdir()] == ["zarr.json"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused_and_named_by_what_differs(path: Path, finished: bool) -> None:
    with ResultStore.create(path, attributes(spacing=2.0)) as store:
        if finished:
            store.finish()
    other = attributes(spacing=1.0)
    for ask in (ResultStore.is_finished, ResultStore.create):
        with pytest.raises(StoreError, match=r"\(spacing 2.0, now 1.0\); .*--force") as caught:
            ask(path, other)
        assert "\n" not in str(caught.value)
    assert ResultStore.open(path).complete == finished


@pytest.mark.parametrize(
    ("table", "change"),
    [("model", {"weights_sha256": "other"}), ("source", {"fingerprint": "other"})],
)
def test_other_weights_or_pixels_are_another_run(
    path: Path, table: str, change: dict[str, str]
) -> None:
    ResultStore.create(path, attributes()).close()
    other = attributes()
    other[table] |= change
    with pytest.raises(StoreError, match="now other"):
        ResultStore.is_finished(path, other)


def test_a_source_that_moved_is_the_same_run(path: Path) -> None:
    with ResultStore.create(path, attributes()) as store:
        store.finish()
    moved = attributes() | {"version": "0.2", "command": "gigavim run elsewhere"}
    moved["source"] |= {"uri": "/elsewhere/slide.svs"}
    assert ResultStore.is_finished(path, moved)


def test_force_starts_over(path: Path) -> None:
    with ResultStore.create(path, attributes(spacing=2.0)) as store:
        store.write_array("tokens/valid", np.ones(3, np.uint8))
        store.write_block(0, np.ones((2, 3), np.float32), np.ones(2, np.bool_))
        store.finish()
    with ResultStore.create(path, attributes(spacing=1.0), force=True) as store:
        assert not store.block_done(0)
        assert not (path / "tokens").exists()
        assert store.attributes["configuration"]["spacing"] == 1.0
        assert not store.complete


def test_a_second_run_is_refused_while_the_first_is_alive(path: Path) -> None:
    with ResultStore.create(path, attributes()):
        for force in (False, True):
            with pytest.raises(StoreBusyError, match=rf"process {os.getpid()} on "):
                ResultStore.create(path, attributes(), force=force)
    ResultStore.create(path, attributes()).close()


def test_a_dead_run_leaves_its_store_to_the_next(path: Path) -> None:
    script = (
        "import json, os, sys\n"
        "from gigavim.store import ResultStore\n"
        "store = ResultStore.create(sys.argv[1], json.loads(sys.argv[2]))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(9)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path), json.dumps(attributes())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StoreBusyError, match=f"process {child.pid}"):
        ResultStore.create(path, attributes())
    child.communicate()
    with ResultStore.create(path, attributes()) as store:
        assert store.attributes["writer"]["pid"] == os.getpid()
    assert not path.with_name(f"{path.name}.lock").exists()


def test_a_folder_that_is_no_store_is_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(StoreError, match="not a GigaVim store"):
            ResultStore.create(path, attributes(), force=force)
    with pytest.raises(StoreError, match="not a GigaVim store"):
        ResultStore.is_finished(path, attributes())
    assert (path / "thesis.txt").read_text() == "years of work"


def test_somebody_elses_zarr_is_left_alone(path: Path) -> None:
    zarr.create_group(path, attributes={"mine": 1})
    with pytest.raises(StoreError, match="not a GigaVim store"):
        ResultStore.create(path, attributes(), force=True)
    assert zarr.open_group(path, mode="r").attrs["mine"] == 1


def test_opening_what_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(StoreError, match="no GigaVim store"):
        ResultStore.open(path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*; .*-o"):
        ResultStore.create(tmp_path / "file" / "slide.gigavim.zarr", attributes())
    with pytest.raises(StoreError, match="is a file"):
        ResultStore.create(tmp_path / "file", attributes())


def _write_tokens(store: ResultStore) -> None:
    store.write_block(0, np.ones((2000, 8), np.float32), np.ones(2000, np.bool_))


def _write_features(store: ResultStore) -> None:
    store.write_rows("tokens/features", [np.ones((2000, 8), np.float32)], (2000, 8), np.float16)


def _write_labels(store: ResultStore) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (300, 300), np.uint8)
    store.write_label_map("map", noise, ("a",), ((1, 2, 3),), SLIDE)


@pytest.mark.parametrize("write", [_write_tokens, _write_features, _write_labels])
def test_a_disk_that_refuses_is_one_line_and_no_result(path: Path, write: Any) -> None:
    with ResultStore.create(path, attributes()) as store:
        with disk_limit(4096), pytest.raises(StoreError, match=r"file too large; .* -o") as caught:
            write(store)
        assert "\n" not in str(caught.value)
    assert not ResultStore.is_finished(path, attributes())
    with ResultStore.create(path, attributes()) as store:
        assert not store.block_done(0)
        write(store)
        store.finish()
    assert ResultStore.is_finished(path, attributes())


def test_a_full_disk_says_to_free_some_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResultStore.create(path, attributes()) as store:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match="no space left on device; free some space"):
            _write_tokens(store)
        assert not store.block_done(0)
        assert not list(path.rglob("*.partial"))


def test_rows_may_come_in_any_parts(path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(70_000, 2)).astype(np.float32)
    parts = np.split(rows, [1, 32_768, 32_769, 69_000])
    with ResultStore.create(path, attributes()) as store:
        store.write_rows("tokens/features", parts, rows.shape, np.float32)
    np.testing.assert_array_equal(ResultStore.open(path).values("tokens/features"), rows)


@pytest.mark.parametrize("rows", [4, 6])
def test_rows_that_do_not_add_up_are_refused(path: Path, rows: int) -> None:
    with (
        ResultStore.create(path, attributes()) as store,
        pytest.raises(ValueError, match="5 rows"),
    ):
        store.write_rows("tokens/features", [np.ones((rows, 2), np.float32)], (5, 2), np.float32)


def test_a_million_tokens_lie_in_few_files_that_are_cheap_to_read_from(path: Path) -> None:
    tokens, width = 1_000_000, 192
    part = np.zeros((8192, 2), np.float16)
    parts = [part[: min(8192, tokens - start)] for start in range(0, tokens, 8192)]
    with ResultStore.create(path, attributes()) as store:
        store.write_rows("tokens/features", [p + 1 for p in parts], (tokens, 2), np.float16)
        store.write_array("tokens/coords", np.ones((tokens, 2), np.int32))
        labels = np.ones((1000, 1000), np.uint8)
        store.write_label_map("map", labels, ("a",), ((1, 2, 3),), SLIDE)
        store.finish()
        features = store.group["tokens/features"]
    assert isinstance(features, zarr.Array)
    assert features.shards is not None
    assert sum(file.is_file() for file in path.rglob("*")) < 100
    assert features.chunks[0] * width * 2 <= 1 << 20
    assert features.shards[0] * width * 2 <= 1 << 24


def test_errors_are_kept_once_in_level_0_pixels(path: Path) -> None:
    error = ReadError(1, Window(10, 20, 30, 40), "tile 7: Größe")
    levels = [Level(400, 400, 1.0, 1.0), Level(100, 200, 4.0, 2.0)]
    with ResultStore.create(path, attributes()) as store:
        store.write_errors([error, error], levels)
    store = ResultStore.open(path)
    found = {
        name: store.values(f"errors/{name}").tolist() for name in ("x", "y", "w", "h", "level")
    }
    assert found == {"x": [40], "y": [40], "w": [80], "h": [120], "level": [1]}
    assert store.values("errors/message").tolist() == ["tile 7: Größe"]


def test_a_run_without_errors_says_so(path: Path) -> None:
    with ResultStore.create(path, attributes()) as store:
        store.write_errors([], [])
    store = ResultStore.open(path)
    assert store.values("errors/x").shape == store.values("errors/message").shape == (0,)


def test_a_store_is_read_with_nothing_but_zarr(path: Path) -> None:
    with ResultStore.create(path, attributes()) as store:
        store.write_array("tokens/coords", np.array([[3, 4]], np.int32))
        store.write_rows("tokens/features", [np.ones((1, 2), np.float16)], (1, 2), np.float16)
        store.describe("tokens", order="hilbert")
        store.write_errors([ReadError(0, Window(0, 0, 1, 1), "broken")], [Level(1, 1, 1, 1)])
        store.write_label_map("map", np.ones((2, 2), np.uint8), ("a",), ((1, 2, 3),), SLIDE)
        store.write_map("map", np.ones((1, 2, 2), np.float32), ("a",), ((1, 2, 3),), SLIDE)
        store.finish()
    script = (
        "import sys, zarr\n"
        "root = zarr.open_group(sys.argv[1], mode='r')\n"
        "assert root.attrs['gigavim']['status'] == 'complete'\n"
        "assert root['tokens/coords'][:].tolist() == [[3, 4]]\n"
        "assert root['tokens/features'][:].tolist() == [[1, 1]]\n"
        "assert root['tokens'].attrs['order'] == 'hilbert'\n"
        "assert root['errors/message'][:].tolist() == ['broken']\n"
        "assert root['labels/map/0'][:].tolist() == [[1, 1], [1, 1]]\n"
        "assert root['maps/map/0'][:].tolist() == [[[1, 1], [1, 1]]]\n"
        "assert sorted(dict(root.members())) == ['errors', 'labels', 'maps', 'tokens']\n"
        "assert 'gigavim' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    subprocess.run(command, check=True, cwd=path.parent)
