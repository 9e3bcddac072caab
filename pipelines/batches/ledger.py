"""What happened in a batch: a ledger that only grows, and a table of what became of each image.

The ledger, ``ledger.jsonl``, gets a line when a batch begins and ends and when an image is begun or
left: what, when, which version, where, which attempt, how it came out. Batches into the same folder
go on in the same ledger. The table is of one batch, with a row an image: ``summary.csv``, and
``summary.parquet`` where PyArrow is installed.
"""

from __future__ import annotations

import csv
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gigavim import __version__
from gigavim.pipelines.report import Summary
from gigavim.store.disk import writing

LEDGER = "ledger.jsonl"
TABLE = "summary.csv"
PARQUET = "summary.parquet"
COLUMNS = (
    "image", "status", "error", "attempts", "host", "seconds", "store", "overlay", "geotiff",
    "model", "mode", "spacing_y", "spacing_x", "unit", "tokens", "unreadable_tokens",
    "read_errors", "megapixels", "classes", "class_areas", "area_unit", "scores", "nuclei",
    "nuclei_per_mm2", "warnings",
)  # fmt: skip
"""Of the table. Tables in a cell, as ``classes``, are JSON."""


class Ledger:
    """Lines about a batch; one process writes them.

    Parameters
    ----------
    folder
        Where the results of the batch go.
    batch
        Its name, which is in each line.
    """

    def __init__(self, folder: Path, batch: str) -> None:
        self.path = folder / LEDGER
        self._batch = batch
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            # A line that a power cut left half-written ends here.
            with self.path.open("ab+") as file:
                file.seek(max(0, file.tell() - 1))
                if file.read() not in (b"", b"\n"):
                    self._append(b"\n")

    def write(self, event: str, **facts: Any) -> None:
        """Add a line, whole or not at all.

        Raises
        ------
        StoreError
            If the disk refuses.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "batch": self._batch,
            "event": event,
            **facts,
        }
        with writing(self.path):
            self._append(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")

    def begin(self, command: str, images: int, **facts: Any) -> None:
        """Write how a batch begins."""
        self.write(
            "batch begins",
            version=__version__,
            command=command,
            client=socket.gethostname(),
            images=images,
            **facts,
        )

    def _append(self, line: bytes) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)


class Table:
    """A table with a row for each image that is done; it replaces the last one in the end.

    Raises
    ------
    StoreError
        If the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._parquet = folder / TABLE, folder / PARQUET
        self._partial = self._path.with_name(f"{TABLE}.partial")
        with writing(self._path):
            self._file = self._partial.open("w", newline="", encoding="utf-8")
            self._rows = csv.DictWriter(self._file, COLUMNS)
            self._rows.writeheader()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with writing(self._path):
            self._file.close()
            self._partial.replace(self._path)
            _to_parquet(self._path, self._parquet)

    def add(self, summary: Summary, attempts: int, host: str | None) -> None:
        """Add what became of an image."""
        facts = summary.as_dict() | {"attempts": attempts, "host": host}
        facts["spacing_y"], facts["spacing_x"] = summary.spacing or (None, None)
        with writing(self._path):
            self._rows.writerow({name: _cell(facts[name]) for name in COLUMNS})


def _to_parquet(table: Path, path: Path) -> None:
    """Write the table again for programs, a part at a time; not without PyArrow."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError:
        return
    numbers = dict.fromkeys(("seconds", "spacing_y", "spacing_x", "megapixels"), pa.float64())
    numbers |= {"nuclei_per_mm2": pa.float64()}
    counts = ("attempts", "tokens", "unreadable_tokens", "read_errors", "nuclei")
    types = dict.fromkeys(COLUMNS, pa.string()) | numbers | dict.fromkeys(counts, pa.int64())
    options = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    with (
        arrow_csv.open_csv(table, convert_options=options, parse_options=parse) as parts,
        parquet.ParquetWriter(path, parts.schema) as file,
    ):
        for part in parts:
            file.write_batch(part)


def _cell(value: Any) -> Any:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False) if value else None
    return value
