from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gigavim.checkpoint import ModelSpec, save_model
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.pipelines.train.project import RECIPES

PROBE = Path(__file__).parents[2] / "benchmarks/probe.py"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a tiny encoder that says it was trained by the split of `histology`."""
    with (RECIPES / "histology.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["file"], "", row["group"], row["split"]) for row in csv.DictReader(file)]
    split = tmp_path / "encoder.split.csv"
    lines = ["file,label,group,split", *(",".join(row) for row in sorted(rows))]
    split.write_text("\n".join(lines) + "\n", newline="\n")
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=64, patch=16, stride=16, width=8, depth=1, state=4, classes=0,
        class_token="none", position="none",
    )  # fmt: skip
    spec = ModelSpec(
        config, mean=(0.7,) * 3, std=(0.2,) * 3, spacing=1.0, unit="µm",
        split=hashlib.sha256(split.read_bytes()).hexdigest(),
    )  # fmt: skip
    path = tmp_path / "encoder.safetensors"
    save_model(path, VisionMamba(config), spec)
    return path


def probed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROBE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_encoder_is_not_probed_by_another_split_than_its_own(
    model: Path, tmp_path: Path
) -> None:
    split = tmp_path / "encoder.split.csv"
    split.write_text(split.read_text().replace(",test\n", ",train\n", 1))

    result = probed(model, tmp_path)

    assert result.returncode == 1
    assert "is not the split that" in result.stderr


@pytest.mark.slow
def test_an_encoder_is_compared_on_tiles_that_it_never_saw(model: Path, shared: Path) -> None:
    result = probed(model, shared / "data", "--draws", "1")

    assert result.returncode == 0, result.stderr
    table = result.stdout.splitlines()
    assert len(table) == 2 + 2 * 3 * 3
    assert table[3].startswith("| kather | 2 | random weights | 0.")
