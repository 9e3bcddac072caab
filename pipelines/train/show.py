"""The figures of a model as tables, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print what `Figures.as_dict` returns: each with its interval, then the confusion."""
    console = Console()
    what = "pixels" if "pixels" in figures else "images"
    values = Table("", "value", "95 % interval", title=f"{figures[what]:,} {what}")
    for name, each in figures["figures"].items():
        interval = f"{each['low']:.3f} to {each['high']:.3f}"
        values.add_row(name.replace("_", " "), f"{each['value']:.3f}", interval)
    console.print(values)
    classes = figures["classes"]
    if not classes:
        return
    numbers = [str(number) for number in range(1, len(classes) + 1)]
    confusion = Table("is", *numbers, title="taken for")
    for number, name, row in zip(numbers, classes, figures["confusion"], strict=True):
        confusion.add_row(f"{number} {name}", *(str(count) for count in row))
    console.print(confusion)
