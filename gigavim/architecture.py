"""What distinguishes one Vision Mamba from another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class VisionMambaConfig:
    """The architecture; the defaults are Vim-Ti."""

    image_size: int = 224
    """Side of the square images it was trained on, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    stride: int = 16
    """From one patch to the next, in pixels."""
    bands: int = 3
    width: int = 192
    """D, numbers of a token."""
    depth: int = 24
    """Blocks."""
    state: int = 16
    """N, states of a channel."""
    expand: int = 2
    """E / D."""
    conv: int = 4
    """Taps of the convolution before the scan."""
    dt_rank: int | None = None
    """R; by default D / 16, rounded up."""
    classes: int = 1000
    """Outputs of the classifier; 0 for none."""
    class_token: Literal["middle", "head", "tail", "double", "none"] = "middle"
    """Where the class token sits: after half of the tokens, at an end, or at both ends."""
    pool: Literal["mean", "last"] = "mean"
    """How the vector of an image is read out when there is no class token."""
    position: Literal["learned", "periodic", "sincos", "none"] = "learned"
    """``learned``: a table, stretched over any grid; ``periodic``: that table, repeated for each
    window of the training grid's size; ``sincos``: sines and cosines of column and row."""
    rope: Literal["none", "tokens", "tokens and residual"] = "none"
    """What is rotated by its position before each block."""
    season: bool = False
    """Whether tokens of an image whose date is known are told the day of the year."""
    directions: Literal["v2", "v1", "forward"] = "v2"
    """``v2``: each has its own convolution and scan; ``v1``: they share all but the decays."""
    halve: bool = True
    """Whether the sum of the two directions of ``v2`` is divided by two."""
    norm: Literal["rms", "layer", "none"] = "rms"
    """``none``: without blocks, for features of tiles that are taken as they are."""
    layer_scale: float | None = None
    """Initial value of a learned scale on each block's output; None for no such scale."""
    block: Literal["vim", "cross"] = "vim"
    """``cross``: VMamba's, `gigavim.cross`. Of it are the next two, and ``vim`` alone has `conv`,
    `directions`, `halve` and `layer_scale`."""
    gate: bool = False
    """Whether what it scanned is gated, and its convolution biased, as in VMamba's ``v0``."""
    mlp_ratio: float = 0.0
    """Hidden numbers of the MLP after the scan, over D; 0 for no MLP."""
    features: int = 0
    """Numbers that another network, a tile encoder, makes of a patch, to be projected to a token;
    0 where pixels are projected."""

    def __post_init__(self) -> None:
        if self.position == "sincos" and self.width % 4:
            raise ValueError(f"sines and cosines need a width of whole fours, not {self.width}")
        if self.rope != "none" and self.class_token != "none":
            raise ValueError("rotary positions are defined for sequences without class token only")
        if self.block == "cross" and (self.class_token, self.rope) != ("none", "none"):
            raise ValueError("cross blocks have no place for a class token or rotary positions")
        if self.norm == "none" and (self.depth or self.features != self.width):
            raise ValueError("only features of tiles that nothing is done with go without a norm")

    @property
    def inner(self) -> int:
        """E, channels of the scan."""
        return self.expand * self.width

    @property
    def rank(self) -> int:
        """R, rank of the step sizes."""
        return math.ceil(self.width / 16) if self.dt_rank is None else self.dt_rank

    @property
    def side(self) -> int:
        """Patches along a side of a training image."""
        return (self.image_size - self.patch) // self.stride + 1

    def class_index(self, length: int) -> tuple[int, ...]:
        """Return where the class tokens sit once they are put among `length` tokens."""
        places = {
            "middle": (length // 2,),
            "head": (0,),
            "tail": (length,),
            "double": (0, length + 1),
            "none": (),
        }
        return places[self.class_token]
