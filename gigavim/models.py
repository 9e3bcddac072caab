"""Which models there are: the published architectures by name, and the weights that ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gigavim.encoder import VisionMambaConfig
from gigavim.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"
"""Models that ship with the package, one safetensors file each."""

ARCHITECTURES = {
    "vim_tiny": VisionMambaConfig(),
    "vim_tiny_plus": VisionMambaConfig(stride=8),
    "vim_small": VisionMambaConfig(width=384),
    "vim_small_plus": VisionMambaConfig(width=384, stride=8),
    "vim_base": VisionMambaConfig(width=768),
    "vim_tiny_rope": VisionMambaConfig(class_token="none", rope="tokens and residual", halve=False),
}
"""Published variants of Vim; ``plus``: fine-tuned on longer sequences, ``rope``: January 2024."""

_PUBLISHED = {
    "vim_tiny": "hustvl/Vim-tiny-midclstok, vim_t_midclstok_76p1acc.pth",
    "vim_tiny_plus": "hustvl/Vim-tiny-midclstok, vim_t_midclstok_ft_78p3acc.pth",
    "vim_small": "hustvl/Vim-small-midclstok, vim_s_midclstok_80p5acc.pth",
    "vim_small_plus": "hustvl/Vim-small-midclstok, vim_s_midclstok_ft_81p6acc.pth",
    "vim_base": "hustvl/Vim-base-midclstok, vim_b_midclstok_81p9acc.pth",
    "vim_tiny_rope": "hustvl/Vim-tiny",
}


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
    if str(name) in ARCHITECTURES:
        raise ModelError(
            f"{name} is an architecture without weights: download "
            f"huggingface.co/{_PUBLISHED[str(name)]} and pass the path of the file as the model"
        )
    known = ", ".join(item.name for item in available() if item.path) or "none"
    raise ModelError(
        f"{name}: no such file and no model of that name; shipped models: {known}; "
        "`gigavim models` lists what can be run"
    )
