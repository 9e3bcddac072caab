from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gigavim.store import fingerprint
from gigavim.store.identity import differences


def test_a_copy_is_the_same_image_and_another_content_is_not(tmp_path: Path) -> None:
    image = tmp_path / "slide.svs"
    image.write_bytes(bytes(range(256)) * 20_000)
    before = fingerprint(str(image))
    copy = shutil.copy(image, tmp_path / "copy.svs")
    os.utime(copy, (0, 0))
    assert fingerprint(str(copy)) == before
    assert before["size"] == 256 * 20_000
    for place in (0, 128 * 20_000, 256 * 20_000 - 1):
        with Path(copy).open("r+b") as file:
            file.seek(place)
            file.write(b"!")
        assert fingerprint(str(copy))["fingerprint"] != before["fingerprint"]
        shutil.copy(image, copy)


@pytest.mark.parametrize("name", ["slide.mrxs", "folder"])
def test_an_image_of_many_files_counts_with_all_of_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    folder = path.with_suffix("")
    folder.mkdir()
    if path != folder:
        path.write_bytes(b"index")
    (folder / "Data0001.dat").write_bytes(b"first")
    before = fingerprint(str(path))
    (folder / "Data0002.dat").write_bytes(b"second")
    assert fingerprint(str(path)) != before


def test_a_source_that_is_no_file_is_known_by_its_name() -> None:
    one, two = fingerprint("/vsicurl/https://x/a.tif"), fingerprint("/vsicurl/https://x/b.tif")
    assert one["size"] is two["size"] is None
    assert one["fingerprint"] != two["fingerprint"]


def test_runs_differ_by_settings_however_deep_and_by_nothing_else() -> None:
    run = {"configuration": {"tissue": {"method": "otsu"}, "bands": ("red",)}, "seconds": 1}
    stored = {"configuration": {"tissue": {"method": "otsu"}, "bands": ["red"]}, "seconds": 2}
    assert differences(stored, run) == []
    other = {"configuration": {"tissue": {"method": "none"}, "bands": ["red"], "new": 1}}
    assert differences(stored, other) == ["new none, now 1", "tissue method otsu, now none"]
