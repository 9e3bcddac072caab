from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gigavim.errors import StoreError
from gigavim.foreground import thumbnail
from gigavim.geometry import Grid, Spacing
from gigavim.georeference import Registration
from gigavim.sources import Plane, open_source
from gigavim.views.overlay import blend, labels_under_pixels, write_overlay, write_view
from gigavim.views.rgb import to_rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)
MICROMETRES = Spacing(0.5, 0.5, "µm", "test")


def registered(grid: Grid, spacing: Spacing = MICROMETRES) -> Registration:
    margin = (grid.patch - grid.stride) / 2
    return Registration(
        grid.cell_y, grid.cell_x, spacing, margin * grid.ratio_y, margin * grid.ratio_x
    )


def picture(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def find(sheet: NDArray[np.uint8], part: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return where a part lies on a sheet."""
    height, width = part.shape[:2]
    for y, x in np.argwhere((sheet == part[0, 0]).all(-1)):
        if np.array_equal(sheet[y : y + height, x : x + width], part):
            return int(y), int(x)
    return None


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    patch=st.integers(1, 40),
    ratio=st.floats(1, 4),
    step=st.floats(0.5, 8),
)
def test_each_pixel_has_the_class_of_the_patch_it_lies_in(
    height: int, width: int, patch: int, ratio: float, step: float
) -> None:
    grid = Grid.over(height, width, patch=patch, ratio_y=ratio, ratio_x=ratio)
    numbers = (np.arange(grid.rows * grid.columns) % 255 + 1).astype(np.uint8)
    labels = numbers.reshape(grid.shape)
    shape = max(1, int(height / step)), max(1, int(width / step))
    found = labels_under_pixels(labels, registered(grid), (step, step), shape)
    for y, x in {(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)}:
        row, column = ((y + 0.5) * step / grid.cell_y, (x + 0.5) * step / grid.cell_x)
        inside = row < grid.rows and column < grid.columns
        assert found[y, x] == (labels[int(row), int(column)] if inside else 0)


@pytest.mark.parametrize(("stride", "shift"), [(16, 0), (8, 8), (4, 12), (20, -4)])
def test_where_patches_overlap_a_cell_is_the_middle_of_its_patch(stride: int, shift: int) -> None:
    grid = Grid.over(203, 150, patch=16, stride=stride, ratio_y=2.0, ratio_x=2.0)
    labels = np.zeros(grid.shape, np.uint8)
    labels[3, 2] = 1
    found = labels_under_pixels(labels, registered(grid), (1.0, 1.0), (203, 150))
    rows, columns = np.nonzero(found)
    top, left = 3 * stride * 2 + shift, 2 * stride * 2 + shift
    assert (rows.min(), rows.max() + 1) == (top, top + 2 * stride)
    assert (columns.min(), columns.max() + 1) == (left, left + 2 * stride)


def test_a_checker_falls_on_its_own_pixels(tmp_path: Path) -> None:
    # 100 x 70 pixels: the last row and column of patches reach beyond the image.
    grid = Grid.over(100, 70, patch=16)
    checker = (np.indices(grid.shape).sum(0) % 2).astype(np.uint8)
    pixels = checker.repeat(16, 0).repeat(16, 1)[:100, :70, None] * np.uint8(200)
    image = np.broadcast_to(pixels, (100, 70, 3)).copy()
    path = tmp_path / "map.png"
    names, colours = ("dark", "light"), (RED, BLUE)
    write_overlay(
        path, image, (1.0, 1.0), checker + 1, registered(grid), names, colours, title="checker"
    )
    sheet = picture(path)
    # Small images are enlarged by a whole factor: 640 // 100.
    plain = image.repeat(6, 0).repeat(6, 1)
    over = np.where(plain > 0, [100, 100, 228], [128, 0, 0]).astype(np.uint8)
    left, right = find(sheet, plain), find(sheet, over)
    assert left is not None
    assert right is not None
    assert left[0] == right[0]
    assert right[1] >= left[1] + plain.shape[1]


def test_broad_images_stand_below_each_other(tmp_path: Path) -> None:
    image = np.full((100, 900, 3), 77, np.uint8)
    labels = np.ones((1, 9), np.uint8)
    cells = Registration(100.0, 100.0, MICROMETRES)
    path = tmp_path / "map.png"
    write_overlay(path, image, (1.0, 1.0), labels, cells, ("all",), (RED,), title="broad")
    sheet = picture(path)
    above, below = (
        find(sheet, image),
        find(sheet, blend(image, np.ones((100, 900), np.uint8), (RED,))),
    )
    assert above is not None
    assert below is not None
    assert above[1] == below[1]
    assert below[0] >= above[0] + 100


def test_background_stays_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    classes = np.zeros((4, 5), np.uint8)
    classes[1, 2] = 1
    blended = blend(image, classes, (RED,))
    changed = (blended != image).any(-1)
    assert np.argwhere(changed).tolist() == [[1, 2]]


def test_the_legend_shows_the_classes_that_occur(tmp_path: Path) -> None:
    image = np.full((700, 700, 3), 255, np.uint8)
    labels = np.ones((7, 7), np.uint8)
    cells = Registration(100.0, 100.0, MICROMETRES)
    path = tmp_path / "map.png"
    write_overlay(
        path, image, (1.0, 1.0), labels, cells, ("there", "not there"), (RED, BLUE), title=""
    )
    sheet = picture(path)
    assert (sheet == RED).all(-1).any()
    assert not (sheet == BLUE).all(-1).any()


@pytest.mark.parametrize(
    ("spacing", "unit", "ratio", "length"),
    [
        # 700 pixels of 0.5 µm are 350 µm; a bar of about a fifth is 50 µm, 100 pixels.
        (0.5, "µm", 1.0, 100),
        # 56 mm: 10 mm
        (0.5, "µm", 160.0, 125),
        # 7 km: 1 km
        (10.0, "metre", 1.0, 100),
        # No length
        (0.0001, "degree", 1.0, None),
    ],
)
def test_the_scale_bar_is_as_long_as_it_says(
    tmp_path: Path, spacing: float, unit: str, ratio: float, length: int | None
) -> None:
    image = np.full((700, 700, 3), 255, np.uint8)
    cells = Registration(100.0, 100.0, Spacing(spacing, spacing, unit, "test"))
    path = tmp_path / "map.png"
    labels = np.zeros((7, 7), np.uint8)
    write_overlay(path, image, (ratio, ratio), labels, cells, ("a",), (RED,), title="")
    below = picture(path)[740:]
    ink = (below < 100).all(-1)
    longest = max((int(row.sum()) for row in ink), default=0)
    if length is None:
        assert longest == 0
    else:
        assert length <= longest <= length + 25


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    cells = Registration(100.0, 100.0, MICROMETRES)
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match=r"map\.png: file too large"):
            write_overlay(
                path, image, (1, 1), np.ones((7, 7), np.uint8), cells, ("a",), (RED,), title=""
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize("stride", [16, 8])
def test_the_classes_of_a_real_slide_lie_on_its_tissue(shared: Path, stride: int) -> None:
    source = open_source(str(shared / "data/slides/CMU-1-Small-Region.svs"))
    plane = Plane.at(source, 2.0)
    grid = Grid.over(
        source.levels[0].height,
        source.levels[0].width,
        patch=16,
        stride=stride,
        ratio_y=plane.ratio_y,
        ratio_x=plane.ratio_x,
    )
    patches = np.lib.stride_tricks.sliding_window_view(
        plane.read(grid.window(0, 0, grid.rows, grid.columns)).values.mean(-1), (16, 16)
    )[::stride, ::stride]
    labels = (patches.mean((2, 3)) < 200).astype(np.uint8)
    pixels, ratio_y, ratio_x = thumbnail(source, 370)
    image = to_rgb(pixels, source.bands)
    tissue = image.mean(-1) < 200

    def agreement(registration: Registration) -> float:
        ratio = ratio_y, ratio_x
        found = labels_under_pixels(labels, registration, ratio, image.shape[:2]) > 0
        # Away from the rim, where patches reach beyond the image.
        inside = np.s_[: -image.shape[0] // 8, : -image.shape[1] // 8]
        return float((found == tissue)[inside].mean())

    right = Registration.of(grid, source)
    shifted = [
        Registration(
            right.cell_y, right.cell_x, right.spacing, right.corner_y + y, right.corner_x + x
        )
        for y in (-right.cell_y / 2, 0, right.cell_y / 2)
        for x in (-right.cell_x / 2, 0, right.cell_x / 2)
    ]
    assert agreement(right) == max(agreement(other) for other in shifted)
    assert agreement(right) > 0.85


def test_what_a_viewer_shows_gets_the_same_legend_and_bar(tmp_path: Path) -> None:
    view = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    path = tmp_path / "view.png"
    legend = [(RED, "tumour", "12.3 mm²"), (BLUE, "stroma", "1,234 mm²")]
    write_view(path, view, 2.0, "µm", legend, title="slide.svs")
    sheet = picture(path)
    top, left = find(sheet, view) or pytest.fail("the view is not on the sheet")
    beside = sheet[:, left + view.shape[1] :]
    assert all((beside == colour).all(-1).any() for colour in (RED, BLUE))
    # A fifth of 1,000 µm, so 200 µm, is 100 pixels.
    below = (sheet[top + view.shape[0] + 2 :] == (32, 33, 36)).all(-1)
    bar = np.flatnonzero(below[below[:, left : left + 100].sum(1).argmax()])
    assert np.isin(np.arange(left, left + 100), bar).all()
    assert not below[:, left + 102 : left + 105].any()
