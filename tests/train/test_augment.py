from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gigavim.errors import GigavimError
from gigavim.pipelines.train.augment import (
    Augmentation,
    cleared,
    mixed,
    restained,
    turned,
    with_bands_dropped,
    zoomed,
)

EVERY = Augmentation(zoom=1.3, stain=0.1, band_dropout=0.3, mixed=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 32) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=seeded(9))


def test_turns_are_all_eight_and_lose_no_pixel() -> None:
    one = images(1).expand(64, -1, -1, -1)

    out = turned(one, seeded())

    assert len({each.numpy().tobytes() for each in out}) == 8
    assert torch.equal(out.flatten(2).sort().values, one.flatten(2).sort().values)


def test_a_zoom_stays_within_the_image_and_its_range() -> None:
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)

    out = zoomed(ramp, 1.25, seeded())

    assert out.min() >= 0
    assert out.max() <= 1
    steps = (out[:, 0, 0, 16] - out[:, 0, 0, 15]).abs() * 31
    assert steps.min() >= 1 / 1.25 - 1e-3
    assert steps.max() <= 1.25 + 1e-3
    assert steps.max() - steps.min() > 0.3


def test_haze_is_taken_off_half_of_the_batches_by_one_share_for_all_images_and_bands() -> None:
    one, haze = torch.full((4, 2, 1, 1), 0.5), (0.2, 0.1)
    draws = torch.stack([0.5 - cleared(one, haze, seeded(n)) for n in range(200)])
    shares = draws / torch.tensor(haze)[:, None, None]
    torch.testing.assert_close(shares, shares[:, :1, :1].expand_as(shares), atol=1e-5, rtol=0)
    assert 0.4 < (shares[:, 0, 0, 0] == 0).float().mean() < 0.6
    assert shares.min() == 0
    assert 0.95 < shares.max() <= 1


def test_what_is_darker_than_haze_is_black() -> None:
    dark = torch.full((1, 2, 4, 4), 0.01)
    assert min(cleared(dark, (0.3, 0.3), seeded(n)).min() for n in range(8)) == 0


def test_haze_of_other_bands_is_refused() -> None:
    with pytest.raises(GigavimError, match="haze has 2 values, and images have 3 bands"):
        cleared(images(), (0.1, 0.1), seeded())


def test_stains_change_in_strength_alone() -> None:
    """Density of one stain stays on its line; without any change an image stays as it is."""
    eosin = torch.tensor([0.07, 0.99, 0.11])
    image = torch.exp(-0.5 * eosin / eosin.norm())[None, :, None, None].expand(16, 3, 4, 4)

    assert torch.allclose(restained(image, 0.0, seeded()), image, atol=1e-5)
    changed = restained(images(), 0.05, seeded())
    assert not torch.allclose(changed, images(), atol=1e-2)
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_of_dropped_bands_one_stays() -> None:
    out = with_bands_dropped(torch.ones(500, 4, 1, 1), 0.9, seeded())

    kept = out.sum(1)[:, 0, 0]
    assert kept.min() == 1
    assert (out == 0).float().mean() == pytest.approx(0.7, abs=0.06)


def test_mixed_images_have_labels_by_area() -> None:
    """Each image is filled with its number, so that the share of another can be counted."""
    numbers = torch.arange(8.0)
    filled = numbers[:, None, None, None].expand(8, 1, 16, 16)

    out, targets = mixed(filled, torch.eye(8), seeded(3))

    for image, target in zip(out, targets, strict=True):
        shares = torch.bincount(image.long().flatten(), minlength=8) / 256
        assert torch.allclose(shares, target)
    assert (targets.max(1).values < 1).any()


def test_a_seed_gives_the_same_batch() -> None:
    def batch(seed: int) -> Tensor:
        generator = seeded(seed)
        changed, _ = EVERY.hide(EVERY.change(images(), generator), torch.eye(32), generator)
        return changed

    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="zoom"):
        Augmentation(zoom=0.5)
    with pytest.raises(ValueError, match="shares"):
        Augmentation(mixed=1.5)
