"""The images of `histology` and their split: ``python benchmarks/histology_split.py DATA``.

Writes ``pipelines/train/recipes/histology.csv`` from the tables of the sets in DATA, by patient
where patients are known:

- nuclei (DSB 2018) as their own table splits them;
- BreakHis as its own table does, by patient, its validation a part of the test;
- Kather and NCT: the tiles of Kather 2016 and NCT-CRC-HE-100K are learned from, those of
  CRC-VAL-HE-7K are the test. Its 50 patients are not those of NCT-CRC-HE-100K (Zenodo 1214456); of
  Kather 2016, ten slides of one hospital, nothing is said. Two are there twice, as PNG and as JPEG,
  and stay together.

Of the sets without a slide Kather's alone say how large their pixels are. Nuclei of BreakHis are
some 7 pixels wide, so its are taken for 1 µm; those of DSB 2018 for 0.5 µm, as in `nuclei`.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

TABLE = Path(__file__).parents[1] / "pipelines/train/recipes/histology.csv"
Row = tuple[str, str, str, str]
"""File, group, split, spacing."""


def rows(data: Path) -> list[Row]:
    listed: list[Row] = [("slides/CMU-1-Small-Region.svs", "CMU-1", "train", "")]
    for row in table(data, "nuclei_dsb2018_cc0/index.csv"):
        file = f"labelled/nuclei_dsb2018_cc0/images/{row['id']}.png"
        listed.append((file, f"dsb2018 {row['id']}", row["split"], "0.5"))
    for row in table(data, "breakhis_mini_ccby/labels.csv"):
        file = f"labelled/breakhis_mini_ccby/{row['file']}"
        split = "train" if row["split"] == "train" else "test"
        listed.append((file, f"breakhis {row['patient']}", split, "1.0"))
    for row in table(data, "kather_nct_ccby/labels.csv"):
        file = f"labelled/kather_nct_ccby/{row['file']}"
        if row["file"].startswith("CRCVAL"):
            (tile,) = re.findall(r"TCGA-([A-Z]{8})", row["file"])
            listed.append((file, f"crc-val {tile}", "test", "0.5"))
        elif row["file"].startswith("NCT100K"):
            listed.append((file, f"nct {row['file']}", "train", "0.5"))
        else:
            (slide,) = re.findall(r"CRC-Prim-HE-\d\d", row["file"])
            split = "val" if slide.endswith("04") else "train"
            listed.append((file, f"kather 2016 {slide}", split, "0.495"))
    return listed


def table(data: Path, name: str) -> list[dict[str, str]]:
    with (data / "labelled" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "group", "split", "spacing"])
        writer.writerows(rows(Path(sys.argv[1])))
