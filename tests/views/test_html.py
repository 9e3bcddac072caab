from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import slide_with_nuclei

from gigavim.config import Resources, RunConfig
from gigavim.errors import StoreError
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from gigavim.views.html import Entry, write_index, write_report
from images import write_model, write_slide

NASTY = "<script>alert('1')<&\"x\".svs"


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a slide with an unpleasant name, of which a tile is broken."""
    folder = tmp_path_factory.mktemp("run")
    slide = write_slide(folder / NASTY, break_tile=8)
    model = write_model(folder / "model.safetensors")
    result = folder / "slide.gigavim.zarr"
    run_image(
        str(slide), result, RunConfig(model=str(model), clusters=3), Resources(device="cpu"),
        command=["gigavim", "run", NASTY],
    )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def report(store: Path) -> Path:
    path = store.with_name("report.html")
    write_report(store, path)
    return path


def test_a_report_needs_no_other_file_and_loads_none(report: Path) -> None:
    page = Page(report)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in page.source
    assert not re.search(r"""(src|href)=["']?https?:""", page.source)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_names_are_shown_and_never_run(report: Path) -> None:
    page = Page(report)
    assert NASTY in page.text
    assert len(page.all("script")) == 1
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_a_report_says_what_the_store_says(store: Path, report: Path) -> None:
    page, about = Page(report), ResultStore.open(store).attributes
    said = (
        about["command"], about["model"]["weights_sha256"], about["source"]["fingerprint"],
        about["version"], "aperio.MPP", "0.5 µm/px", "parts of the file",
    )  # fmt: skip
    for text in said:
        assert text in page.text
    for stage in about["stages"]:
        assert stage in page.text
    labels = ResultStore.open(store).values("labels/clusters/0")
    for count in np.bincount(labels.ravel())[1:]:
        assert f"{count:,}" in page.text


def test_each_class_can_be_shown_and_hidden(report: Path) -> None:
    page = Page(report)
    layers = {
        image["id"] for image in page.all("img") if image.get("class", "").startswith("layer")
    }
    boxes = {box["data-layer"] for box in page.all("input") if "data-layer" in box}
    assert layers == boxes
    assert len(layers) == 4  # three clusters and the foreground


def test_a_report_outlives_its_image(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gigavim.zarr"
    shutil.copytree(store, copy)
    slide = store.parent / NASTY
    away = slide.rename(slide.with_name("away"))
    try:
        write_report(copy, tmp_path / "report.html")
    finally:
        away.rename(slide)
    assert "The image cannot be shown" in Page(tmp_path / "report.html").text


def test_an_unfinished_store_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing"):
        write_report(tmp_path / "none.gigavim.zarr", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_index_says_how_many_nuclei_were_found(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = slide_with_nuclei(tmp_path_factory.getbasetemp())
    assert found.store is not None
    assert Entry.of(found.store).result == f"{found.nuclei} nuclei"
    assert found.nuclei == 12


def test_an_index_lists_results_and_failures_with_their_message(store: Path, report: Path) -> None:
    path = store.with_name("index.html")
    failed = Entry(f"/data/{NASTY}", "failed", "broken.svs is no image <b>at all</b>")
    write_index([Entry.of(store, report), failed], path, title="A batch")
    page = Page(path)
    assert "broken.svs is no image <b>at all</b>" in page.text
    assert "1 complete" in page.text
    assert "1 failed" in page.text
    assert [link["href"] for link in page.all("a")] == ["./report.html"]
    assert len(page.all("tr")) == 3
    assert len(page.all("img")) == 1
    assert not page.all("b")


@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_the_report(report: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1400",
         f"--screenshot={picture}", report.as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    seen = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert seen.shape[1] == width
    # The overlay is there in colour, and nothing sticks out at the right.
    assert (np.ptp(seen, axis=2) > 60).mean() > 0.02
    assert np.ptp(seen[:, -8:], axis=(0, 1)).max() == 0
