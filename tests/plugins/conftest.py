"""A real viewer on a real, if invisible, screen."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
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


PACKAGES = "xvfb libxcb-icccm4 libxcb-keysyms1 libxcb-cursor0 libegl1 libgl1 libgl1-mesa-dri"
"""Of Debian and Ubuntu: a screen that nobody sees, and what Qt draws on it with."""


@pytest.fixture(scope="session", autouse=True)
def screen() -> None:
    """Skip where no window opens: Qt would end the whole process."""
    if sys.platform != "linux":
        return
    if not any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        if shutil.which("Xvfb") is None:
            pytest.skip(f"there is no screen: apt-get install {PACKAGES}")
        pytest.skip("there is no screen: pytest-xvfb did not start one")
    code = "from qtpy.QtWidgets import QApplication; QApplication([])"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if tried.returncode:
        fault = tried.stderr.strip().splitlines()[:1] or [f"signal {-tried.returncode}"]
        pytest.skip(f"Qt opens no window here ({fault[0]}): apt-get install {PACKAGES}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of the viewer pass, and none of ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
            item.add_marker(pytest.mark.filterwarnings("error:::gigavim.*"))


@pytest.fixture(scope="module", autouse=True)
def collected_here() -> Iterator[None]:
    """Collect what closed windows leave in the thread of windows alone, between tests.

    Whichever thread allocates collects, otherwise, and the timers of napari and Qt must end in
    theirs: those of other tests would end the process.
    """
    gc.collect()
    gc.freeze()  # the rest need not be looked at again
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def viewer(qtbot: Any) -> Iterator[Any]:
    """Return an empty viewer in a window; it is closed when the test ends."""
    viewer = napari.Viewer()
    yield viewer
    viewer.close()
    del viewer
    gc.collect()
