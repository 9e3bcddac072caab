"""From features to answers: clusters without labels, classes with them.

A head is a function from features, shape (n, D), to probabilities, shape (n, K); `clusters` answers
with labels instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.encoder import VisionMamba

SAMPLE = 50_000
"""Features that the clusters are fitted on, however many there are."""
START = 10_000
"""Of these, features that the clusters are begun with."""
ROWS_AT_ONCE = 16_384
"""Features read, converted and labelled together: memory does not grow with their number."""

OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (128, 128, 128),
)


class Rows(Protocol):
    """Features that may be longer than memory, shape (n, D): an array, here or in a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many features there are, and their width."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes of a map, in the order of its labels or probabilities."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each, 0 to 255."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours):
            raise ValueError(f"{len(self.names)} class names for {len(self.colours)} colours")

    @classmethod
    def of_clusters(cls, k: int) -> ClassTable:
        """Name and colour `k` clusters, which mean nothing in themselves."""
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette(k))
        return cls(tuple(f"cluster {i + 1}" for i in range(k)), colours)


def clusters(
    features: Rows, k: int, seed: int = 0, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Group features that are alike: mini-batch k-means on standardised features, well begun.

    The same features and seed give the same labels. They are numbered along the direction in which
    the clusters differ most, so that alike clusters get neighbouring numbers. Features are read in
    parts, twice, so memory beyond the labels does not depend on how many there are.

    Parameters
    ----------
    features
        Shape (n, D), finite. At most `SAMPLE` of them, drawn by the seed, are fitted.
    k
        Clusters, 1 to 255; where there are fewer different features, there are fewer clusters.
    valid
        Which of the features count, shape (n,); by default all.

    Returns
    -------
    labels
        0 to k - 1, one for each feature that counts, in their order.

    Raises
    ------
    ValueError
        If `k` is out of range.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if not 1 <= k <= 255:
        raise ValueError(f"clusters are 1 to 255, not {k}")
    n = features.shape[0] if valid is None else int(valid.sum())
    if n == 0:
        return np.zeros(0, np.uint8)
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(n, SAMPLE, replace=False)) if n > SAMPLE else np.arange(n)
    sample = _take(features, valid, chosen)
    mean, spread = sample.mean(0), sample.std(0)
    spread[spread < 1e-6] = 1.0  # a constant feature tells nothing; rounding must not blow it up
    sample = (sample - mean) / spread

    # Begun anywhere, mini batches end anywhere: the best of ten full k-means on fewer features is a
    # start from which a slide and its recompressed twin get the same clusters.
    few = sample[random.permutation(len(sample))[:START]]
    k = min(k, len(np.unique(few, axis=0)))
    start = KMeans(k, random_state=seed, n_init=10).fit(few).cluster_centers_
    model = MiniBatchKMeans(k, init=start, n_init=1, random_state=seed, batch_size=4096).fit(sample)
    rank = _along_main_axis(model.cluster_centers_)
    labels = [rank[model.predict((p - mean) / spread)] for p in _parts(features, valid)]
    return np.concatenate(labels)


def _parts(features: Rows, valid: NDArray[np.bool_] | None) -> Iterator[NDArray[np.float32]]:
    """Yield the features that count, some at a time, none of the parts empty."""
    for start in range(0, features.shape[0], ROWS_AT_ONCE):
        cut = slice(start, start + ROWS_AT_ONCE)
        if valid is None or valid[cut].any():
            part = np.asarray(features[cut], np.float32)
            yield part if valid is None else part[valid[cut]]


def _take(
    features: Rows, valid: NDArray[np.bool_] | None, chosen: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return some of the features that count, by their rising numbers among these."""
    taken, done = [], 0
    for part in _parts(features, valid):
        first, last = np.searchsorted(chosen, (done, done + len(part)))
        taken.append(part[chosen[first:last] - done])
        done += len(part)
    return np.concatenate(taken)


def _along_main_axis(centres: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the rank of each centre along their first principal component, shape (k,)."""
    centred = centres - centres.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    # The sign of a principal axis is arbitrary.
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    rank = np.empty(len(centres), np.uint8)
    rank[np.argsort(centred @ axis, kind="stable")] = np.arange(len(centres))
    return rank


@torch.inference_mode()
def classify(vectors: torch.Tensor, encoder: VisionMamba) -> torch.Tensor:
    """Return the probabilities of the encoder's classes.

    Parameters
    ----------
    vectors
        Of images, or features of single patches, shape (m, D).

    Returns
    -------
    probs
        Shape (m, K).

    Raises
    ------
    ValueError
        If the encoder has no classes.
    """
    if not encoder.config.classes:
        raise ValueError("this encoder has no classes; use its features or clusters")
    logits: torch.Tensor = encoder.head(vectors)
    return logits.softmax(-1)


def probabilities(features: Rows, encoder: VisionMamba) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities of the encoder's classes for features that are read in parts.

    Parameters
    ----------
    features
        Of patches or tiles, shape (n, D).

    Yields
    ------
    probs
        Of some at a time, in their order, shape (m, K).
    """
    device = next(encoder.parameters()).device
    for part in _parts(features, None):
        yield classify(torch.from_numpy(part).to(device), encoder).cpu().numpy()


def palette(k: int) -> NDArray[np.uint8]:
    """Return `k` distinct colours, shape (k, 3), red, green, blue.

    The first eight are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which colour-blind
    people tell apart, black replaced by grey; each further one is as far as can be, in CIELAB, from
    those before it and from black and white.
    """
    colours = np.array(OKABE_ITO, np.uint8)
    if k <= len(colours):
        return colours[:k]
    from skimage.color import rgb2lab

    candidates = np.indices((8, 8, 8), np.uint8).reshape(3, -1).T * 36
    places = rgb2lab(candidates)
    taken = rgb2lab(np.concatenate([colours, np.array([[0, 0, 0], [255, 255, 255]], np.uint8)]))
    distance = np.linalg.norm(places[:, None] - taken, axis=-1).min(1)
    chosen = []
    for _ in range(k - len(colours)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=-1))
    return np.concatenate([colours, candidates[chosen]])
