from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from gigavim.errors import GigavimError
from gigavim.pipelines.train.tiles import TileSet, read_tiles
from tile_files import tile, write_folder, write_table, zipped


def by_file(tiles: TileSet) -> dict[str, tuple[str, bytes]]:
    rows = zip(tiles.tiles, tiles.pixels, strict=True)
    return {tile.file: (tile.label, image.tobytes()) for tile, image in rows}


def test_a_folder_a_zip_of_it_and_a_table_hold_the_same_tiles(tmp_path: Path) -> None:
    table = write_table(tmp_path / "tiles")
    folder = by_file(read_tiles(tmp_path / "tiles"))

    assert folder["sea/3.png"] == ("sea", tile("sea", 3).tobytes())
    assert by_file(read_tiles(table)) == folder
    archive = by_file(read_tiles(zipped(tmp_path / "tiles", tmp_path / "tiles.zip")))
    assert {name.removeprefix("tiles/"): value for name, value in archive.items()} == folder


def test_folders_above_the_classes_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_folder(tmp_path / split, count=2)

    tiles = read_tiles(tmp_path)

    assert {tile.split for tile in tiles.tiles} == {"train", "val", "test"}
    assert [tiles.tiles[row].file for row in tiles.rows("val")] == [
        "val/forest/0.png", "val/forest/1.png", "val/sea/0.png", "val/sea/1.png",
    ]  # fmt: skip


def test_labels_are_numbers_of_classes(tmp_path: Path) -> None:
    tiles = read_tiles(write_folder(tmp_path / "tiles", count=1))

    assert tiles.labels(["forest", "sea"]).tolist() == [0, 1]


def test_a_tile_that_cannot_be_read_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "tiles", count=3)
    (folder / "sea/1.png").write_bytes(b"no picture")
    half = (folder / "sea/2.png").read_bytes()
    (folder / "sea/2.png").write_bytes(half[: len(half) // 2])

    with caplog.at_level(logging.WARNING):
        tiles = read_tiles(folder)

    assert len(tiles.tiles) == len(tiles.pixels) == 4
    assert "2 of 6 tiles cannot be read" in caplog.text
    assert "sea/1.png" in caplog.text


def break_class(folder: Path) -> None:
    for file in (folder / "sea").iterdir():
        file.write_bytes(b"")


def empty_class(folder: Path) -> None:
    (folder / "river").mkdir()


def resize_tile(folder: Path) -> None:
    shutil.rmtree(folder / "sea")
    write_folder(folder / "more", count=1, side=8)
    shutil.move(folder / "more/sea", folder / "sea")
    shutil.rmtree(folder / "more")


def lift_tile(folder: Path) -> None:
    shutil.move(folder / "sea/0.png", folder / "0.png")


def remove_tiles(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (break_class, "class 'sea' has no tile that can be read"),
        (empty_class, "class 'river' has no tile"),
        (resize_tile, r"sea/0.png is \(8, 8, 3\)"),
        (lift_tile, "tiles outside of folders"),
        (remove_tiles, "no tiles were found"),
    ],
)
def test_a_faulty_folder_is_one_clear_error(tmp_path: Path, fault: object, message: str) -> None:
    folder = write_folder(tmp_path / "tiles", count=2)
    fault(folder)  # type: ignore[operator]

    with pytest.raises(GigavimError, match=message) as error:
        read_tiles(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sea/99.png,sea,a", "names 1 files that are not there, as sea/99.png"),
        ("sea/0.png,,a", "file 'sea/0.png' has no label"),
        ("sea/0.png,sea,a", "file 'sea/0.png' is listed twice"),
    ],
)
def test_a_faulty_line_of_a_table_is_one_clear_error(
    tmp_path: Path, line: str, message: str
) -> None:
    table = write_table(tmp_path / "tiles")
    table.write_text(table.read_text() + f"\n{line}\n")

    with pytest.raises(GigavimError, match=message) as error:
        read_tiles(table)
    assert "\n" not in str(error.value)


def test_a_table_without_labels_says_what_it_has(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("name,class\nx.png,sea\n")

    with pytest.raises(GigavimError, match="has name, class; it needs the columns file and label"):
        read_tiles(table)


def test_bands_other_than_three_are_read_as_they_are(tmp_path: Path) -> None:
    import rasterio

    values = np.arange(5 * 8 * 8, dtype=np.uint16).reshape(5, 8, 8)
    (tmp_path / "sea").mkdir()
    with rasterio.open(
        tmp_path / "sea/0.tif", "w", driver="GTiff", height=8, width=8, count=5, dtype="uint16",
        crs="EPSG:32632", transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:  # fmt: skip
        file.write(values)

    assert np.array_equal(read_tiles(tmp_path).pixels[0], values.transpose(1, 2, 0))
