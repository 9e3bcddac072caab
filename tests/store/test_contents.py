from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from gigavim.store import ResultStore

ATTRIBUTES = {"configuration": {}, "model": {}, "source": {}}


def fill(store: ResultStore) -> None:
    store.write_rows("tokens/features", [np.ones((70_000, 2))], (70_000, 2), np.float16)
    store.write_array("tokens/valid", np.arange(70_000) % 2)
    store.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished store."""
    path = tmp_path / "slide.gigavim.zarr"
    with ResultStore.create(path, ATTRIBUTES) as store:
        fill(store)
    return path


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in (path / "tokens/features/c").rglob("*") if file.is_file())


def lose_a_file(path: Path) -> None:
    files_of(path)[1].unlink()


def cut_a_file(path: Path) -> None:
    with files_of(path)[0].open("r+b") as file:
        file.truncate(100)


def change_the_shape(path: Path) -> None:
    about = path / "tokens/features/zarr.json"
    about.write_text(about.read_text().replace("70000", "60000", 1))


def spoil_what_it_says(path: Path) -> None:
    (path / "tokens/valid/zarr.json").write_text("{")


def lose_an_array(path: Path) -> None:
    (path / "tokens/valid/zarr.json").unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lose_a_file, "tokens/features has files 2, not 3"),
        (cut_a_file, "tokens/features has bytes"),
        (change_the_shape, r"tokens/features has shape \[60000, 2\], not \[70000, 2\]"),
        (spoil_what_it_says, "tokens/valid is no array any more"),
        (lose_an_array, "tokens/valid is gone"),
    ],
)
def test_a_store_that_lost_something_is_made_again(
    path: Path, harm: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm(path)
    with caplog.at_level(logging.WARNING):
        assert not ResultStore.is_finished(path, ATTRIBUTES)
    (message,) = caplog.messages
    assert re.search(f"is damaged, and made again: {said}", message)
    with ResultStore.create(path, ATTRIBUTES) as store:
        assert not store.complete
        fill(store)
    assert ResultStore.is_finished(path, ATTRIBUTES)


def test_a_whole_store_is_finished_and_may_be_added_to(path: Path) -> None:
    assert ResultStore.is_finished(path, ATTRIBUTES)
    zarr.open_group(path).create_array("notes", shape=(1,), dtype="u1")
    assert ResultStore.is_finished(path, ATTRIBUTES)
    with ResultStore.create(path, ATTRIBUTES) as store:
        assert store.complete
