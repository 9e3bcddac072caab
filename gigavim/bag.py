"""One answer for a whole image: attention says which of its tokens the answer comes from.

Gated attention for multiple-instance learning (Ilse, Tomczak, Welling 2018, arXiv 1802.04712): the
tokens of an image are a bag, the label is the bag's, and tokens are weighed by how much they tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim.head import ROWS_AT_ONCE, Rows


@dataclass(frozen=True, slots=True)
class BagConfig:
    """What the head of whole images is made of."""

    classes: int
    hidden: int = 64
    """Width in which attention is computed."""


class GatedAttention(nn.Module):
    """Weighs tokens, and classifies their weighted mean.

    Parameters
    ----------
    width
        Of a token, D.
    """

    def __init__(self, width: int, config: BagConfig) -> None:
        super().__init__()
        self.config = config
        self.value = nn.Linear(width, config.hidden)
        self.gate = nn.Linear(width, config.hidden)
        self.weigh = nn.Linear(config.hidden, 1, bias=False)
        self.classify = nn.Linear(width, config.classes)

    def evidence(self, features: Tensor) -> Tensor:
        """Return the logarithms of the weights, but for a constant, (..., n) of (..., n, D)."""
        gated = torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features))
        evidence: Tensor = self.weigh(gated)[..., 0]
        return evidence

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (b, K), of the tokens of images, shape (b, n, D)."""
        weights = self.evidence(features).float().softmax(-1)
        logits: Tensor = self.classify((weights[..., None] * features).sum(-2))
        return logits


class Attended(NamedTuple):
    """What attention makes of an image."""

    scores: NDArray[np.float32]
    """Probabilities of the classes, shape (K,)."""
    attention: NDArray[np.float32]
    """Weight of each token, 0 for those that do not count; their sum is 1; shape (n,)."""
    vector: NDArray[np.float32]
    """The weighted mean of the features, which is what is classified, shape (D,)."""


@torch.inference_mode()
def attend(head: GatedAttention, features: Rows, valid: NDArray[np.bool_]) -> Attended:
    """Classify an image by features that may be longer than memory; they are read twice.

    Parameters
    ----------
    valid
        Which of the features count, shape (n,); at least one.
    """
    device = head.weigh.weight.device

    def parts() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, features.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            yield rows, torch.from_numpy(np.asarray(features[rows], np.float32)).to(device)

    evidence = torch.cat([head.evidence(part).cpu() for _, part in parts()])
    evidence[~torch.from_numpy(valid)] = -torch.inf
    attention = evidence.double().softmax(0)
    mean = torch.zeros(features.shape[1], device=device)
    for rows, part in parts():
        # What could not be read may be anything, NaN as well.
        mean += attention[rows].float().to(device) @ part.nan_to_num()
    scores = head.classify(mean).softmax(-1)
    return Attended(scores.cpu().numpy(), attention.float().numpy(), mean.cpu().numpy())
