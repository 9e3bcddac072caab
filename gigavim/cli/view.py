"""A look at images and results, in napari."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from gigavim.cli.options import Debug
from gigavim.cli.outcome import fail, or_one_line
from gigavim.errors import GigavimError

BINDINGS = ("PySide6", "PyQt6", "PyQt5")
"""Any of which draws napari's window."""

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
"""Any of which says where."""


def view(
    paths: Annotated[
        list[str], typer.Argument(help="Slides, scenes, and results: NAME.gigavim.zarr.")
    ],
    source: Annotated[
        str | None,
        typer.Option(help="Where the image of the results is, if it has moved."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at images and at results over them, in a window."""
    if find_spec("napari") is None or not any(map(find_spec, BINDINGS)):
        fail(GigavimError("looking needs: pip install 'gigavim[napari]'"))
    if sys.platform == "linux" and not any(name in os.environ for name in SCREENS):
        fail(GigavimError("there is no screen here: log in with ssh -X, or look on a desktop"))
    import napari

    from gigavim.plugins.napari.window import open_viewer

    or_one_line(lambda: open_viewer(paths, source), debug=debug)
    napari.run()
