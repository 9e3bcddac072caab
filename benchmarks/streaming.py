"""Peak memory and time per token of a streamed sequence, over three orders of magnitude.

``python benchmarks/streaming.py`` prints one JSON line a length, each from a process of its own.
The tokens are random, and made as they are asked for; the scratch is in the folder that SCRATCH
names, by default the current one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LENGTHS = (10**5, 10**6, 10**7)
PART = 16_384
FOLDER = os.environ.get("SCRATCH", ".")


def measure(length: int) -> dict[str, float]:
    import numpy as np
    import psutil
    import torch

    from gigavim.encoder import VisionMamba, VisionMambaConfig
    from gigavim.streamed import DiskScratch, mix, rows_like, rows_of

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = VisionMamba(VisionMambaConfig(width=16, depth=1, state=4, classes=0)).eval()

    def tokens() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for start in range(0, length, PART):
            stop = min(start + PART, length)
            yield np.arange(start, stop), torch.randn(stop - start, encoder.config.width)

    before = psutil.Process().memory_info().rss
    started, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        rows = rows_of(encoder, length)
        width, like = encoder.config.width, rows_like(encoder)
        with DiskScratch(Path(folder), "benchmark", rows, width, PART, like) as scratch:
            mixed = mix(encoder, tokens(), length, scratch, positioned=False)
            for start in range(0, length, PART):
                mixed.tokens(start, min(start + PART, length))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {
        "tokens": length,
        "peak_mib": peak_mib(),
        "before_mib": before / 2**20,
        "us_per_token": seconds / length * 1e6,
        "cpu_us_per_token": busy / length * 1e6,  # the rest is the disk, and whoever else runs
    }


def peak_mib() -> float:
    """Of this process; unlike getrusage, Linux does not pass a parent's peak on here."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        for length in LENGTHS:
            subprocess.run([sys.executable, __file__, str(length)], check=True)
