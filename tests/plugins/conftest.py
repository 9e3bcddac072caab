"""A real viewer on a real, if invisible, screen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytestqt", reason="needs the extra dev")
with warnings.catch_warnings():
    # Its dependencies warn of each other on import.
    warnings.simplefilter("ignore")
    napari = pytest.importorskip("napari", reason="needs the extra napari")
    # It imports the rest of itself when that is asked for.
    assert napari.Viewer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of the viewer pass, and none of ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
            item.add_marker(pytest.mark.filterwarnings("error:::gigavim.*"))


@pytest.fixture
def viewer(qtbot: Any) -> Iterator[Any]:
    """Return an empty viewer in a window; it is closed when the test ends."""
    viewer = napari.Viewer()
    yield viewer
    viewer.close()
