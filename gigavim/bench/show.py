"""The rows of a benchmark as a table, a plot and JSON lines."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

Row = Mapping[str, str | int | float]
"""One measurement: the value of each column, the same columns in each row."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What of a benchmark's rows is drawn."""

    x: str
    """The column along which is measured; numbers are drawn as lines, names as bars."""
    panels: Mapping[str, str]
    """The columns that are drawn, each in a panel, and how their axes are labelled."""
    lines: tuple[str, ...] = ()
    """The columns that tell one line from another."""


def show(name: str, rows: Iterable[Row], plot: Plot, folder: Path) -> None:
    """Print rows as a table while they come; write them and a plot of them to a folder.

    Files are ``<name>.jsonl`` and ``<name>.png``; without matplotlib there is no plot, and one line
    on stderr says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen: list[Row] = []
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file, Live() as live:
        for row in rows:
            seen.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            live.update(as_table(seen))
    written = [folder / f"{name}.jsonl"]
    if importlib.util.find_spec("matplotlib"):
        written.append(folder / f"{name}.png")
        draw(seen, plot, written[-1])
    else:
        print("no plot: pip install matplotlib", file=sys.stderr)
    Console().print("", *written, sep="\n", soft_wrap=True, highlight=False)


def as_table(rows: Sequence[Row]) -> Table:
    """Return a table of rows, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column, value in rows[0].items() if rows else ():
        side: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(column, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def draw(rows: Sequence[Row], plot: Plot, path: Path) -> None:
    """Draw rows as a PNG; needs matplotlib."""
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(5 * len(plot.panels), 4), layout="constrained")
    panels = figure.subplots(1, len(plot.panels), squeeze=False)[0]
    names = dict.fromkeys(_line(row, plot) for row in rows)
    for panel, (column, label) in zip(panels, plot.panels.items(), strict=True):
        for name in names:
            line = [row for row in rows if _line(row, plot) == name]
            xs, ys = [row[plot.x] for row in line], [row[column] for row in line]
            if isinstance(xs[0], str):
                panel.barh(xs, ys, label=name, alpha=0.6)
            else:
                panel.loglog(xs, ys, "o-", label=name)
                panel.set_xlabel(plot.x)
        panel.set_title(label)
        panel.grid(visible=True, which="both", alpha=0.2)
    if len(names) > 1:
        panels[0].legend()
    figure.savefig(path, dpi=120)


def _line(row: Row, plot: Plot) -> str:
    return ", ".join(str(row[column]) for column in plot.lines)
