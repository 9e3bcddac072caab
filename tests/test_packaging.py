from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a checkout makes beside the sources; the wheel has its own build of the libraries.
MADE = {".so", ".dylib", ".dll", ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that an sdist of this checkout builds."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_tree_as_one_package(wheel: zipfile.ZipFile) -> None:
    expected = set()
    for folder in ("gigavim", "kernels", "pipelines", "plugins"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix not in MADE and "__pycache__" not in file.parts:
                place = file.relative_to(ROOT).as_posix()
                expected.add(place if folder == "gigavim" else f"gigavim/{place}")
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in names if Path(name).suffix not in MADE} == expected


def test_the_wheel_claims_no_other_import_name(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gigavim"}


def test_the_wheel_carries_the_models_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "gigavim/weights/slide-mini.safetensors" in names
    assert "gigavim/weights/scene-mini.safetensors" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


PUBLIC = """
import importlib, pkgutil, gigavim
for found in pkgutil.walk_packages(gigavim.__path__, "gigavim."):
    if "-" in found.name:  # a library of the scan, which Python takes for a module
        continue
    if found.name.startswith("gigavim.plugins."):  # tests/plugins has a screen, and napari
        continue
    module = importlib.import_module(found.name)
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), f"{found.name} has no {name}"
"""


def test_every_public_name_is_there() -> None:
    subprocess.run([sys.executable, "-c", PUBLIC], check=True)
