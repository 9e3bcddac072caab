"""Which models there are: the published architectures by name, and the weights that ship.

An architecture is a constructor, for training; to run published weights, pass the file to
`gigavim.checkpoint.load_model`, which recognises them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"
"""Models that ship with the package, one safetensors file each."""

_PUBLISHED = {
    "vim_tiny": "hustvl/Vim-tiny-midclstok, vim_t_midclstok_76p1acc.pth",
    "vim_tiny_plus": "hustvl/Vim-tiny-midclstok, vim_t_midclstok_ft_78p3acc.pth",
    "vim_small": "hustvl/Vim-small-midclstok, vim_s_midclstok_80p5acc.pth",
    "vim_small_plus": "hustvl/Vim-small-midclstok, vim_s_midclstok_ft_81p6acc.pth",
    "vim_base": "hustvl/Vim-base-midclstok, vim_b_midclstok_81p9acc.pth",
    "vim_tiny_rope": "hustvl/Vim-tiny",
}


def vim_tiny(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-Ti."""
    return VisionMamba(VisionMambaConfig(bands=bands, classes=classes))


def vim_tiny_plus(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-Ti+: Vim-Ti with patches that overlap by half."""
    return VisionMamba(VisionMambaConfig(stride=8, bands=bands, classes=classes))


def vim_small(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-S."""
    return VisionMamba(VisionMambaConfig(width=384, bands=bands, classes=classes))


def vim_small_plus(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-S+: Vim-S with patches that overlap by half."""
    return VisionMamba(VisionMambaConfig(stride=8, width=384, bands=bands, classes=classes))


def vim_base(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-B."""
    return VisionMamba(VisionMambaConfig(width=768, bands=bands, classes=classes))


def vim_tiny_rope(*, bands: int = 3, classes: int = 1000) -> VisionMamba:
    """Return an untrained Vim-Ti of January 2024: rotary positions and no class token."""
    config = VisionMambaConfig(
        bands=bands, classes=classes, class_token="none", rope="tokens and residual", halve=False
    )
    return VisionMamba(config)


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of ``gigavim models``."""

    name: str
    path: Path | None
    """The weights; None for an architecture whose weights the user has to bring."""
    note: str
    """For people: where it is, or where its weights are to be had."""


def available() -> list[Listed]:
    """List the models that ship with GigaVim, then the published architectures."""
    shipped = [
        Listed(path.stem, path, "shipped with GigaVim")
        for path in sorted(WEIGHTS.glob("*.safetensors"))
    ]
    published = [
        Listed(name, None, f"bring weights: huggingface.co/{source}")
        for name, source in _PUBLISHED.items()
    ]
    return shipped + published


def weights_path(name: str | Path) -> Path:
    """Return the weights file that a name or path stands for.

    Raises
    ------
    ModelError
        If there is none. An architecture alone is no model: it is never run on random weights.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = WEIGHTS / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    if str(name) in _PUBLISHED:
        raise ModelError(
            f"{name} is an architecture without weights: download "
            f"huggingface.co/{_PUBLISHED[str(name)]} and pass the path of the file as the model"
        )
    known = ", ".join(item.name for item in available() if item.path) or "none"
    raise ModelError(
        f"{name}: no such file and no model of that name; shipped models: {known}; "
        "`gigavim models` lists what can be run"
    )


def default_model(kind: Literal["slide", "scene"]) -> str:
    """Return the name of the shipped model for a kind of image.

    Raises
    ------
    ModelError
        If this installation lacks it.
    """
    name = f"{kind}-mini"
    if not (WEIGHTS / f"{name}.safetensors").is_file():
        raise ModelError(
            f"{name}, the model for a {kind}, is not in {WEIGHTS}; install GigaVim again, "
            "or choose a model with --model"
        )
    return name
