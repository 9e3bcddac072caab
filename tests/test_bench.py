from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest

from gigavim.bench import Plot, Row, show
from gigavim.bench.measure import PeakMemory, alone, best_in_turns
from gigavim.bench.run import bench_run
from gigavim.bench.scan import bench_scan
from gigavim.bench.vim import Case, bench_vim, measure
from gigavim.memory import MIB, keep_freed_memory
from images import write_slide

ROWS: list[Row] = [
    {"model": "a", "tokens": 10, "seconds": 0.5},
    {"model": "a", "tokens": 100, "seconds": 4.0},
    {"model": "b", "tokens": 10, "seconds": 0.2},
]
PLOT = Plot("tokens", {"seconds": "seconds"}, lines=("model",))


def test_rows_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show("speed", ROWS, PLOT, tmp_path / "new")
    lines = (tmp_path / "new/speed.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    printed, told = capsys.readouterr()
    assert "tokens" in printed
    assert "4.0" in printed
    assert (importlib.util.find_spec("matplotlib") is None) == ("pip install matplotlib" in told)


def test_rows_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    show("lines", ROWS, PLOT, tmp_path)
    show("bars", ROWS, Plot("model", {"seconds": "seconds", "tokens": "tokens"}), tmp_path)
    for name in ("lines", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    show("none", [], PLOT, tmp_path)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    turns = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert best_in_turns(turns, 2).keys() == {"a", "b"}
    assert calls == ["a", "b", "a", "b"]


def test_memory_taken_and_given_back_counts() -> None:
    assert 90 < alone(_mib_of_a_hundred) < 150


def _mib_of_a_hundred() -> float:
    with PeakMemory() as peak:
        block = b"1" * (100 * MIB)
        time.sleep(0.2)
        del block
    return peak.mib


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the choice")
def test_freed_memory_is_found_again() -> None:
    first, again = alone(_page_faults_of_two_arrays)
    assert again < first / 4


def _page_faults_of_two_arrays() -> tuple[int, int]:
    import resource

    keep_freed_memory()
    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        len(b"1" * (16 * MIB))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults[0], faults[1]


def test_every_scan_is_timed_and_the_environment_left_alone() -> None:
    before = os.environ.get("GIGAVIM_SCAN")
    rows = list(bench_scan(tokens=40, channels=8, states=4, rounds=1))
    assert {"reference", "torch"} <= {row["scan"] for row in rows}
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}
    assert all(row["times_torch"] == 1 for row in rows if row["scan"] == "torch")
    assert os.environ.get("GIGAVIM_SCAN") == before


def test_vim_is_timed_without_anything_to_compare_it_with() -> None:
    rows = list(bench_vim(sides=(32,), threads=1, products=("float32",), rounds=1))
    vim = [row for row in rows if row["model"] == "Vim-Ti"]
    assert [row["tokens"] for row in vim] == [4]
    assert all(row["seconds"] > 0 for row in rows)  # type: ignore[operator]


def test_a_case_may_ask_for_a_scan() -> None:
    row = alone(measure, Case("Vim-Ti", 32, batch=2, scan="reference"), 1)
    assert row["scan"] == "reference"


def test_a_run_is_timed_beside_reading_alone(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.svs")
    (row,) = bench_run(path, spacings=(2.0,), modes=("whole",))
    assert row["image"] == "slide.svs"
    assert row["tokens"] > 0  # type: ignore[operator]
    assert row["times_reading"] > 0  # type: ignore[operator]
