from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.pipelines.train.begin import with_stride

Token = Literal["middle", "head", "tail", "double", "none"]
SMALL = VisionMambaConfig(image_size=64, width=8, depth=2, state=2, classes=3)


def encoder(token: Token = "middle") -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(replace(SMALL, class_token=token)).eval()


@pytest.mark.parametrize("token", ["middle", "head", "tail", "double", "none"])
def test_positions_are_stretched_over_the_longer_sequence_and_class_tokens_keep_theirs(
    token: Token,
) -> None:
    before, after = encoder(token), with_stride(encoder(token), 8)

    side = after.config.side
    assert side == 7
    assert after.pos_embed.shape[1] == side**2 + len(after.config.class_index(0))
    wanted, given = before.position_for(side, side), after.position_for(side, side)
    assert wanted is not None
    assert given is not None
    assert torch.equal(wanted, given)
    old, new = (list(c.class_index(c.side**2)) for c in (before.config, after.config))
    assert torch.equal(before.pos_embed[:, old], after.pos_embed[:, new])


def test_all_but_the_positions_stay_and_the_model_runs() -> None:
    before = encoder()
    after = with_stride(before, 8)

    assert all(
        torch.equal(weight, after.state_dict()[name])
        for name, weight in before.state_dict().items()
        if name != "pos_embed"
    )
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 64), np.float32))
    assert after(images).shape == (2, 3)
