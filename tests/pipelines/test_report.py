from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pytest

from gigavim.pipelines.report import peak_memory

PRINT_PEAK = "from gigavim.pipelines.report import peak_memory; print(peak_memory())"


def test_the_peak_of_memory_outlasts_what_took_it() -> None:
    array = np.ones(256 * 2**20, np.uint8)
    held = psutil.Process().memory_info().rss
    del array
    # Linux counts pages roughly where many threads take them.
    assert 0.98 * held <= peak_memory() < 2 * held


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no peak outlives its program")
def test_the_peak_is_that_of_this_program_alone() -> None:
    # A process that took 512 MiB and then became another program.
    large = f"""
import os, sys
bytearray(b"1" * (512 * 2**20))
os.execv(sys.executable, [sys.executable, "-c", {PRINT_PEAK!r}])
"""
    after_large, alone = (
        int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
        for program in (large, PRINT_PEAK)
    )
    assert after_large < alone + 256 * 2**20
