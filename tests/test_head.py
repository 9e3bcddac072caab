from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import rgb2lab
from sklearn.metrics import adjusted_rand_score

from gigavim import head
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.head import ClassTable, classify, clusters, palette


def groups(
    count: int, size: int = 200, width: int = 24, seed: int = 0
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Features in `count` groups that lie far apart, shuffled, and the group of each."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(count), size))
    centres = random.normal(size=(count, width)) * 5
    features = centres[group] + random.normal(size=(count * size, width)) * 0.3
    return features.astype(np.float16), group


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_clusters_find_groups_that_lie_apart(count: int, seed: int) -> None:
    features, group = groups(count, seed=seed)
    labels = clusters(features, count)
    assert labels.dtype == np.uint8
    assert set(labels) == set(range(count))
    assert adjusted_rand_score(group, labels) == 1


def test_the_same_seed_gives_the_same_clusters() -> None:
    features = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float16)
    first = clusters(features, 7, seed=1)
    assert np.array_equal(first, clusters(features.copy(), 7, seed=1))
    assert not np.array_equal(first, clusters(features, 7, seed=2))


def test_labels_do_not_depend_on_how_many_rows_are_labelled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float16)
    labels = clusters(features, 5)
    monkeypatch.setattr(head, "ROWS_AT_ONCE", 271)
    assert np.array_equal(clusters(features, 5), labels)


def test_a_sample_is_fitted_and_all_are_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "SAMPLE", 300)
    features, group = groups(4)
    labels = clusters(features, 4)
    assert adjusted_rand_score(group, labels) == 1
    assert np.array_equal(labels, clusters(features, 4))


class Part(np.ndarray[tuple[int, ...], np.dtype[np.float16]]):
    """Features of which only a few rows may be asked for at a time."""

    def __getitem__(self, rows: slice) -> NDArray[np.float16]:
        found = np.asarray(self)[rows]
        assert len(found) <= head.ROWS_AT_ONCE
        return found


def test_features_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(head, "SAMPLE", 300)
    features, group = groups(4)
    assert adjusted_rand_score(group, clusters(features.view(Part), 4)) == 1


def test_features_that_do_not_count_change_no_label() -> None:
    features, group = groups(4)
    valid = np.random.default_rng(1).random(len(features)) > 0.3
    valid[:300] = False
    features[~valid] = np.nan
    found = clusters(features, 4, valid=valid)
    assert adjusted_rand_score(group[valid], found) == 1
    assert np.array_equal(found, clusters(features[valid], 4))
    assert clusters(features, 4, valid=np.zeros_like(valid)).shape == (0,)


def test_the_scale_of_a_feature_does_not_matter() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    scales = np.array([1, 4, 1024, 0.25, 2, 64], np.float32)  # powers of two: no rounding
    assert np.array_equal(clusters(features, 6), clusters(features * scales, 6))


def test_alike_clusters_get_neighbouring_numbers() -> None:
    place = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 100))
    random = np.random.default_rng(1)
    features = np.stack([place, 2 * place, np.zeros(600)], 1) + random.normal(size=(600, 3)) * 0.01
    features[:, 2] = 3  # constant: it tells nothing
    labels = clusters(features, 6).astype(int)
    assert np.array_equal(labels, place) or np.array_equal(labels, 5 - place)


def test_there_are_no_more_clusters_than_different_features() -> None:
    features = np.repeat(np.array([[0, 1], [5, 5], [9, 0]], np.float32), 10, axis=0)
    labels = clusters(features, 8)
    assert len(set(labels)) == 3
    assert all(len(set(part)) == 1 for part in labels.reshape(3, 10))
    assert set(clusters(np.ones((4, 3), np.float32), 8)) == {0}
    assert clusters(np.ones((0, 3), np.float32), 8).shape == (0,)


@pytest.mark.parametrize("k", [0, -1, 256])
def test_the_number_of_clusters_fits_a_byte(k: int) -> None:
    with pytest.raises(ValueError, match=f"clusters are 1 to 255, not {k}"):
        clusters(np.zeros((5, 2), np.float32), k)


@given(st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_colours_are_distinct_and_none_is_the_black_of_no_label(k: int) -> None:
    colours = palette(k)
    assert colours.shape == (k, 3)
    assert colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours} | {(0, 0, 0)}) == k + 1
    # A map of more clusters keeps the colours of the fewer.
    assert np.array_equal(colours, palette(255)[:k])


def test_colours_are_told_apart() -> None:
    places = rgb2lab(palette(255))
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(255)
    # As far apart as Okabe and Ito's closest pair, up to 32; the eye sees a distance of 2.3.
    assert distance[:32, :32].min() == distance[:8, :8].min()
    assert distance.min() > 10


def test_each_cluster_has_a_name_and_a_colour() -> None:
    table = ClassTable.of_clusters(3)
    assert table.names == ("cluster 1", "cluster 2", "cluster 3")
    assert table.colours == tuple(tuple(colour) for colour in palette(3).tolist())


def test_a_class_table_has_as_many_names_as_colours() -> None:
    with pytest.raises(ValueError, match="2 class names for 1 colours"):
        ClassTable(("water", "soil"), ((0, 0, 255),))


def test_probabilities_are_those_of_the_published_classifier(shared: Path) -> None:
    fixture = torch.load(shared / "fixtures/vim_nano.pt", weights_only=True)
    encoder = VisionMamba(VisionMambaConfig(32, 8, 8, width=16, depth=2, classes=5))
    encoder.load_state_dict(fixture["model"])
    probs = classify(fixture["pooled"], encoder)
    torch.testing.assert_close(probs, fixture["logits"].softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2))


def test_an_encoder_without_classes_classifies_nothing() -> None:
    encoder = VisionMamba(VisionMambaConfig(32, 8, 8, width=16, depth=1, classes=0))
    with pytest.raises(ValueError, match="has no classes"):
        classify(torch.zeros(1, 16), encoder)
