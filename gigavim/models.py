"""Which models there are: the published architectures by name, and the weights that ship.

An architecture is a constructor, for training; to run published weights, pass the file to
`gigavim.checkpoint.load_model`, which recognises them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gigavim import hub
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"
"""Models that ship with the package, one safetensors file each."""

PUBLISHED = {
    "vim_tiny": "hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth",
    "vim_tiny_plus": "hf://hustvl/Vim-tiny-midclstok/vim_t_midclstok_ft_78p3acc.pth",
    "vim_small": "hf://hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
    "vim_small_plus": "hf://hustvl/Vim-small-midclstok/vim_s_midclstok_ft_81p6acc.pth",
    "vim_base": "hf://hustvl/Vim-base-midclstok/vim_b_midclstok_81p9acc.pth",
    "vim_tiny_rope": "hf://hustvl/Vim-tiny/vim_tiny_73p1.pth",
}
"""Weights that the authors of Vim published, by the names of the constructors below."""


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
    """The weights; None for an architecture whose weights are not here."""
    note: str
    """For people: where it is, or where its weights are to be had."""


def available() -> list[Listed]:
    """List the models that ship with GigaVim, then the published ones."""
    ship = [
        Listed(path.stem, path, "shipped with GigaVim")
        for path in sorted(WEIGHTS.glob("*.safetensors"))
    ]
    published = []
    for name, address in PUBLISHED.items():
        path = hub.cached(address)
        note = f"`gigavim models --fetch {name}` downloads it from"
        published.append(Listed(name, path, f"{'from' if path else note} {address}"))
    return ship + published


def weights_path(name: str | Path) -> Path:
    """Return the weights file that a path, a name or an address on the hub stands for.

    A file on the hub, ``hf://owner/repo/file``, is downloaded, published weights are not.

    Raises
    ------
    ModelError
        If there is none. An architecture alone is no model: it is never run on random weights.
    """
    text = str(name)
    if text.startswith(hub.SCHEME):
        return hub.fetch(text)
    found = Path(name) if Path(name).is_file() else shipped(text)
    if found is None and text in PUBLISHED:
        found = hub.cached(PUBLISHED[text])
        if found is None:
            raise ModelError(
                f"{name} is not here yet: `gigavim models --fetch {name}` downloads it from "
                f"{PUBLISHED[text]}; or download the file by hand and pass its path"
            )
    if found is None:
        known = ", ".join(path.stem for path in sorted(WEIGHTS.glob("*.safetensors"))) or "none"
        raise ModelError(
            f"{name}: no such file and no model of that name; shipped models: {known}; "
            "`gigavim models` lists what can be run"
        )
    return found


def fetch(name: str) -> Path:
    """Download published weights by name, or a file on the hub by its address.

    Raises
    ------
    ModelError
        If there is none of that name, or it cannot be downloaded.
    """
    if name not in PUBLISHED and not name.startswith(hub.SCHEME):
        raise ModelError(
            f"there are no published weights {name!r}; there are {', '.join(PUBLISHED)}, and "
            "hf://owner/repository/file"
        )
    return hub.fetch(PUBLISHED.get(name, name))


def shipped(name: str) -> Path | None:
    """Return the weights file of a model that ships with GigaVim; None if there is none."""
    path = WEIGHTS / f"{name}.safetensors"
    return path if path.is_file() else None
