"""Compiles the C library (kernels/scan/*.c) when GigaVim is installed, if there is a compiler.

A library depends on no version of Python or PyTorch. There is one for each instruction set, beside
its source, where an editable install loads it and from where the wheel takes it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

# No -ffast-math: see vector.h.
FLAGS = "-std=gnu11 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -shared"
FLAGS += "" if os.name == "nt" else " -fPIC"
# library.py picks by torch.backends.cpu.get_cpu_capability(), which vouches for these and no more.
TARGETS = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma",
    "avx2": "-mavx2 -mfma",
    "generic": "",
}


class CustomBuildHook(BuildHookInterface[Any]):
    """Builds the libraries and adds them to the wheel, which then fits this platform only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build; what cannot be built is said and left out, and PyTorch scans in its place."""
        compiler = (
            shlex.split(os.environ.get("CC", ""))
            or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
        )
        if not compiler:
            self.app.display_warning("No C compiler (cc, gcc, clang): the scan will run in PyTorch")
            return
        scan = Path(self.root, "kernels", "scan")
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        built = []
        for target in TARGETS if x86 else ["generic"]:
            library = scan / f"libgigavim_scan-{target}.so"
            fault = build(compiler, TARGETS[target], scan, library)
            if fault:
                self.app.display_warning(f"The scan in C is not built for {target}: {fault}")
            else:
                built.append(library)
        if built and version == "standard":
            wheel = {str(library): f"gigavim/kernels/scan/{library.name}" for library in built}
            build_data["force_include"].update(wheel)
            # A local build promises nothing about other distributions.
            local = (tag for tag in platform_tags() if not tag.startswith(("many", "musl")))
            build_data["tag"] = f"py3-none-{next(local)}"
            build_data["pure_python"] = False


def build(compiler: list[str], options: str, scan: Path, library: Path) -> str:
    """Compile, with OpenMP if there is one; return what went wrong, nothing if all went well."""
    sources = b"".join(path.read_bytes() for path in sorted(scan.glob("*.[ch]")))
    digest = hashlib.sha256(sources).hexdigest()
    # Renamed at the end, for a running process may have the last build open.
    unfinished = library.with_suffix(f".{os.getpid()}.so")
    command = [*compiler, *FLAGS.split(), *options.split(), f'-DSOURCES="{digest}"']
    command += [*map(str, sorted(scan.glob("*.c"))), "-o", str(unfinished)]
    fault = ""
    for openmp in (["-fopenmp"], []):
        try:
            subprocess.run([*command, *openmp], check=True, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        except subprocess.CalledProcessError as error:
            fault = next(iter(error.stderr.splitlines()), f"exit status {error.returncode}")
        else:
            unfinished.replace(library)
            return ""
    return fault
