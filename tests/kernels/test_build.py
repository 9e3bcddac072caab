from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[2]
COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of what the wheel is built from, without libraries."""
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tmp_path)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("gigavim", "kernels", "pipelines", "plugins"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, symlinks=True, ignore=ignore)
    return tmp_path


def build_wheel(sources: Path, **environment: str) -> tuple[Path, str]:
    """Return the wheel and what the build said."""
    call = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", call, str(sources)],
        cwd=sources,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = sources.glob("*.whl")
    return wheel, done.stderr + done.stdout


def libraries(wheel: Path) -> set[str]:
    return {name for name in ZipFile(wheel).namelist() if name.endswith(".so")}


@pytest.mark.skipif(not COMPILER, reason="needs a C compiler")
def test_a_wheel_carries_the_libraries_and_fits_any_python_of_its_platform(sources: Path) -> None:
    wheel, _ = build_wheel(sources)
    assert "gigavim/kernels/scan/libgigavim_scan-generic.so" in libraries(wheel)
    assert wheel.name.startswith("gigavim-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PATH": "/nowhere", "CC": ""}, "No C compiler"),
        ({"CC": "/nowhere/cc"}, "/nowhere/cc"),
        ({"CC": f"{sys.executable} -c 'raise SystemExit(3)'"}, "exit status 3"),
    ],
    ids=["no compiler", "missing compiler", "failing compiler"],
)
def test_an_install_without_a_working_compiler_succeeds_and_says_so(
    sources: Path, environment: dict[str, str], said: str
) -> None:
    wheel, output = build_wheel(sources, **environment)
    assert said in output
    assert not libraries(wheel)
    assert wheel.name.endswith("-py3-none-any.whl")
