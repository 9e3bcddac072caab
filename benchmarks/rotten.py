"""Map a slide with 1 % of its tiles rotten: ``PYTHONPATH=tests python benchmarks/rotten.py``.

A token is made as large as a tile of the file, so that exactly the tokens of rotten tiles must be
missing, and exactly those tiles be listed under ``errors/``. One JSON line; exit code 1 otherwise.

The slide is a TIFF whose tiles are square and fill it; of its levels the first and the last are
kept, of which the last must be coarser than a token, or it would be read in place of the first.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from gigavim.config import Resources, RunConfig
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from images import write_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slide = Path(shutil.copy(args.slide, folder / "rotten.svs"))
        side, columns, tiles, rotten = rot(slide, args.share, args.seed)
        model = write_model(folder / "model.safetensors")
        config = RunConfig(
            model=str(model), source_spacing=(1.0, 1.0), spacing=side / 16, read_all=True,
            heads=("features",),
        )  # fmt: skip
        place = folder / "rotten.gigavim.zarr"
        summary = run_image(str(slide), place, config, Resources(device="cpu", readers=2))
        store = ResultStore.open(place)
        index = store.values("tokens/grid_index").astype(np.int64)
        missing = index[store.values("tokens/valid") == 0]
        encoded = store.values("tokens/features")[store.values("tokens/valid") == 0]
        named = store.values("errors/y") // side * columns + store.values("errors/x") // side
    good = (
        set(named.tolist()) == rotten
        and set((missing[:, 0] * columns + missing[:, 1]).tolist()) == rotten
        and not encoded.any()
    )
    row = {
        "benchmark": "rotten",
        "tiles": tiles,
        "rotten": len(rotten),
        "recorded": len(named),
        "tokens": summary.tokens,
        "tokens_missing": len(missing),
        "exactly_those": good,
        "seconds": round(summary.seconds, 1),
        "stages": {name: round(seconds, 1) for name, seconds in summary.stages.items()},
        "peak_mb": summary.peak_memory_bytes >> 20,
    }
    print(json.dumps(row))
    sys.exit(not good)


def rot(slide: Path, share: float, seed: int) -> tuple[int, int, int, set[int]]:
    """Let a share of the tiles point at noise; return their side, columns, number, and which."""
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        order = file.byteorder
        tables = [page.tags[name] for name in ("TileOffsets", "TileByteCounts")]
        places = [(tag.valueoffset, tag.dtype_name) for tag in tables]
        side, columns = page.tilewidth, page.imagewidth // page.tilewidth
        tiles = len(page.dataoffsets)
        coarsest = file.pages[-1].aspage().offset
        after_tags = page.offset + 2 + 12 * len(page.tags)
    assert [name for _, name in places] == ["LONG", "LONG"]
    rotten = set(random.Random(seed).sample(range(tiles), round(share * tiles)))
    noise = random.Random(seed).randbytes(4096)
    with slide.open("r+b") as raw:
        start = raw.seek(0, 2)
        raw.write(noise)
        for number in rotten:
            for (table, _), value in zip(places, (start, len(noise)), strict=True):
                raw.seek(table + 4 * number)
                raw.write(struct.pack(f"{order}I", value))
        raw.seek(after_tags)
        raw.write(struct.pack(f"{order}I", coarsest))
    return side, columns, tiles, rotten


if __name__ == "__main__":
    main()
