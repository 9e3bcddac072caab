from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gigavim import hub, models
from gigavim.checkpoint import load_model
from gigavim.errors import ModelError
from images import write_model

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub on which every file is the same model, and what was downloaded from it."""
    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(write_model(tmp_path / "downloaded.safetensors"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    return asked


def test_a_model_of_the_hub_is_downloaded_when_it_is_asked_for(
    downloads: list[tuple[str, str]],
) -> None:
    model = load_model("hf://someone/land/models/ten-metres.safetensors")
    assert downloads == [("someone/land", "models/ten-metres.safetensors")]
    assert model.spec.bands == ("red", "green", "blue")


def test_published_weights_are_downloaded_by_fetch_alone(
    downloads: list[tuple[str, str]],
) -> None:
    models.available()
    with pytest.raises(ModelError, match="gigavim models --fetch vim_tiny"):
        models.weights_path("vim_tiny")
    assert downloads == []
    models.fetch("vim_tiny")
    assert downloads == [("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth")]
    with pytest.raises(ModelError, match="no published weights 'vim_giant'; there are vim_tiny"):
        models.fetch("vim_giant")


def test_what_was_downloaded_is_found_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "vim.pth"
    kept.touch()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(kept))
    assert models.weights_path("vim_tiny") == kept
    assert {each.name: each.path for each in models.available()}["vim_tiny"] == kept


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/repo", "hf:///repo/file"])
def test_an_address_that_is_none_says_what_one_is(address: str) -> None:
    with pytest.raises(ModelError, match="write hf://owner/repository/file"):
        hub.fetch(address)


@pytest.mark.parametrize(
    "command",
    [
        ["models", "--fetch", "vim_tiny"],
        ["run", "none.tif", "--model", "hf://a/b/c.safetensors"],
        ["models", "hf://not a name/b/c.safetensors"],
    ],
)
def test_offline_a_model_that_is_not_here_is_one_line(command: list[str], tmp_path: Path) -> None:
    if command[0] == "run":
        from images import write_scene

        command = [command[0], str(write_scene(tmp_path / "scene.tif")), *command[2:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "gigavim", *command],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gigavim: hf://")
    assert "cannot be fetched" in line
    assert "pass the file" in line
