"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# A machine that is busy with something else is no fault of the code.
hypothesis.settings.register_profile("gigavim", deadline=None)
hypothesis.settings.load_profile("gigavim")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real slides, scenes and reference outputs; the suite passes without them."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    return SHARED
