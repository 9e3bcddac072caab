from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from gigavim import __version__
from gigavim.pipelines.batches.ledger import LEDGER, PARQUET, TABLE, Ledger, Table
from gigavim.pipelines.report import Summary


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / LEDGER).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_ledger_only_grows(tmp_path: Path) -> None:
    Ledger(tmp_path, "one").begin("gigavim batch", 2)
    ledger = Ledger(tmp_path, "two")
    ledger.write("left", image="Größe.svs", error='a "quoted"\nfault')
    begun, left = lines(tmp_path)
    assert (begun["batch"], begun["version"], begun["images"]) == ("one", __version__, 2)
    assert (left["batch"], left["image"], left["error"]) == (
        "two", "Größe.svs", 'a "quoted"\nfault',
    )  # fmt: skip


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    Ledger(tmp_path, "one").write("begun")
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"event": "le')
    Ledger(tmp_path, "two").write("begun")
    text = (tmp_path / LEDGER).read_text().splitlines()
    assert len(text) == 3
    assert json.loads(text[2])["batch"] == "two"


SUMMARIES = [
    Summary("a.svs", "complete", store="a.gigavim.zarr", spacing=(0.5, 0.25), tokens=7,
            classes={"Größe, groß": 0.5}, warnings=("one", "two")),
    Summary("b.svs", "failed", error='what\n"it" says, at length'),
    Summary("c.svs", "skipped"),
]  # fmt: skip


def test_the_table_has_a_row_an_image(tmp_path: Path) -> None:
    with Table(tmp_path) as table:
        for number, summary in enumerate(SUMMARIES):
            table.add(summary, number + 1, "node7")
    with (tmp_path / TABLE).open(newline="", encoding="utf-8") as file:
        a, b, c = csv.DictReader(file)
    assert (a["spacing_y"], a["spacing_x"], a["tokens"]) == ("0.5", "0.25", "7")
    assert json.loads(a["classes"]) == {"Größe, groß": 0.5}
    assert json.loads(a["warnings"]) == ["one", "two"]
    assert (b["status"], b["error"], b["attempts"]) == ("failed", SUMMARIES[1].error, "2")
    assert (c["status"], c["store"]) == ("skipped", "")


def test_the_table_is_there_for_programs_too(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with Table(tmp_path) as table:
        for summary in SUMMARIES:
            table.add(summary, 1, None)
    rows = parquet.read_table(tmp_path / PARQUET).to_pylist()
    assert [row["status"] for row in rows] == ["complete", "failed", "skipped"]
    assert (rows[0]["spacing_y"], rows[0]["tokens"], rows[0]["nuclei"]) == (0.5, 7, None)
    assert rows[1]["error"] == SUMMARIES[1].error


def test_what_was_done_is_in_the_table_also_after_an_interruption(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Table(tmp_path) as table:
            table.add(SUMMARIES[0], 1, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "a.svs" in (tmp_path / TABLE).read_text()
