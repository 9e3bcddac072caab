"""A slide of ten gigapixels is panned without the window ever being stuck, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIDES = "48", "32"
"""Copies of a real slide beside and below each other: 103,680 x 92,160 pixels."""


@pytest.fixture
def giga(shared: Path, tmp_path: Path) -> Path:
    """Return a slide of 9.56 gigapixels, in a file of 8 MB."""
    path = tmp_path / "giga.svs"
    tool, tile = shared / "tools" / "giga_svs.py", shared / "data/slides/CMU-1-Small-Region.svs"
    subprocess.run([sys.executable, tool, tile, path, *SIDES], check=True)
    return path


@pytest.mark.slow
def test_panning_ten_gigapixels_never_holds_the_window(giga: Path) -> None:
    # In a process of its own: its memory is that of the viewer, and of no other test.
    script = Path(__file__).with_name("pan.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, script, giga], env=environment, stdout=subprocess.PIPE, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tiles"] > 50
    assert not told["window_has_read"]
    assert told["block_ms"] < 100
    assert told["peak_bytes"] < 2 << 30
