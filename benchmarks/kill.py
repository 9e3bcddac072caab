"""Kill a run at random moments, continue it, compare: ``python benchmarks/kill.py [SLIDE]``.

The slide, by default the sample, is mapped through the command line, and mixed from the disk. Each
time a new run is killed at a moment drawn from all of an unbroken run and continued by the same
command; then every array of its store is compared with the unbroken one's, to the bit. A JSON line
for each kill, and one for all.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors
import zarr

from gigavim.sample import make_slide

# However short the sequence: a scratch in memory would begin the mixing again.
PROGRAM = """
import sys
from gigavim.cli import main
from gigavim.pipelines import memory
memory.IN_MEMORY = 0
sys.argv[0] = "gigavim"
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", nargs="?", type=Path, help="by default the sample slide")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", default="2", help="µm/px; finer is longer")
    parser.add_argument("--max-memory", default="2GiB")
    args = parser.parse_args()
    moments, identical = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slide = args.slide or folder / "slide.svs"
        if args.slide is None:
            make_slide(slide)

        def start(store: Path) -> subprocess.Popen[bytes]:
            command = ["run", slide, "-o", store, "--spacing", args.spacing, "--quiet"]
            limit = ["--max-memory", args.max_memory]
            return subprocess.Popen([sys.executable, "-c", PROGRAM, *command, *limit])

        unbroken = folder / "unbroken.gigavim.zarr"
        started = time.perf_counter()
        assert start(unbroken).wait() == 0
        seconds = time.perf_counter() - started
        wanted = arrays(unbroken)
        killed = 0
        while killed < args.kills:
            store = folder / f"{killed}.gigavim.zarr"
            moment = moments.uniform(0, seconds)
            run = start(store)
            try:
                run.wait(moment)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            else:  # it was faster than the unbroken one, and there was nothing to kill
                store.rename(folder / f"finished-{moment}")
                continue
            killed += 1
            reached = stage(store)
            assert start(store).wait() == 0
            found = arrays(store)
            same = found.keys() == wanted.keys() and all(
                found[name] == wanted[name] for name in wanted
            )
            identical += same
            row = {"kill": killed, "after_s": round(moment, 2), "reached": reached, "same": same}
            print(json.dumps(row), flush=True)
    row = {
        "benchmark": "kill",
        "kills": killed,
        "identical": identical,
        "arrays": len(wanted),
        "unbroken_s": round(seconds, 1),
    }
    print(json.dumps(row))
    sys.exit(identical != killed)


def arrays(store: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and content of every array of a finished store."""
    group = zarr.open_group(store, mode="r")
    assert group.attrs["gigavim"]["status"] == "complete"
    return {
        name: (str(item.dtype), item.shape, np.asarray(item[...]).tobytes())
        for name, item in group.members(max_depth=None)
        if isinstance(item, zarr.Array) and item.dtype.kind != "T"
    }


def stage(store: Path) -> str:
    """Say how far a killed run had come."""
    journal = store / "state/mixing/journal.safetensors"
    if (store / "labels").exists():
        return "maps"
    if (store / "tokens/features").exists():
        return "features"
    if journal.exists():
        with safetensors.safe_open(journal, "np") as content:
            return f"mixing, step {json.loads(content.metadata()['head'])['step']}"
    blocks = len(list((store / "state").glob("*.npz")))
    return f"reading, {blocks} blocks" if blocks else "nothing saved"


if __name__ == "__main__":
    main()
