from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.position import Rope, positions_on, resize_as_upstream, season_waves, sincos_positions


def random_table(rows: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_positions_on_any_grid_are_those_of_bicubic_interpolation(
    side: int, rows: int, columns: int
) -> None:
    table = random_table(side**2)
    image = table.T.reshape(1, -1, side, side)
    expected = nn.functional.interpolate(image, (rows, columns), mode="bicubic")
    expected = expected[0].flatten(1).T
    torch.testing.assert_close(positions_on(table, rows, columns), expected)
    index = torch.tensor([[rows - 1, 0], [rows // 2, columns - 1]])
    some = positions_on(table, rows, columns, index)
    torch.testing.assert_close(some, expected[index[:, 0] * columns + index[:, 1]])


def test_positions_on_the_trained_grid_are_the_table_itself() -> None:
    table = random_table(16)
    assert torch.equal(positions_on(table, 4, 4), table)


def test_positions_of_a_gigapixel_grid_are_evaluated_only_where_asked() -> None:
    # The whole grid would be 15 thousand million rows.
    table = random_table(16)
    position = positions_on(table, 100_000, 150_000, torch.tensor([[0, 0], [99_999, 149_999]]))
    corners = positions_on(table, 1000, 1500, torch.tensor([[0, 0], [999, 1499]]))
    torch.testing.assert_close(position, corners, atol=0.01, rtol=0)


def test_no_place_has_no_position() -> None:
    nowhere = torch.empty(0, 2, dtype=torch.long)
    assert positions_on(random_table(16), 5, 7, nowhere).shape == (0, 6)


def test_resized_positions_are_those_of_the_fixture(shared: Path) -> None:
    fixture = torch.load(shared / "fixtures/vim_posembed.pt", weights_only=True)
    table = fixture["pos_embed_197"]
    encoder = VisionMamba(VisionMambaConfig(width=16, depth=1, classes=0))
    with torch.no_grad():
        encoder.pos_embed.copy_(table)
        position = encoder.position_for(27, 27)
        finer = encoder.position_for(32, 32)
        class_rows = encoder.class_rows(positioned=True)
    expected = fixture["mid_aware_730"][0]
    torch.testing.assert_close(position, torch.cat([expected[:364], expected[365:]]))
    torch.testing.assert_close(class_rows, encoder.cls_token[0].detach() + expected[364])
    torch.testing.assert_close(finer, fixture["mid_aware_1024_nocls"][0])
    torch.testing.assert_close(resize_as_upstream(table, 27), fixture["upstream_730"])
    torch.testing.assert_close(resize_as_upstream(table, 32), fixture["upstream_1025"])


def test_upstream_cannot_resize_a_table_whose_rows_are_no_square() -> None:
    with pytest.raises(ValueError, match="195 rows are not a square grid"):
        resize_as_upstream(torch.zeros(1, 197, 8), 27, class_rows=2)


def test_rotation_turns_each_pair_by_the_published_angle() -> None:
    side, width = 3, 8
    tokens = random_table(side**2, width)
    rope = Rope(side, width).double()
    expected = torch.empty_like(tokens)
    for t in range(side**2):
        for pair in range(width // 2):
            along, k = divmod(pair, width // 4)
            place = (t // side if along == 0 else t % side) / side * 14
            turn = torch.polar(
                torch.tensor(1.0, dtype=torch.float64),
                torch.tensor(place * 10000 ** (-2 * k / (width / 2)), dtype=torch.float64),
            )
            turned = torch.complex(tokens[t, 2 * pair], tokens[t, 2 * pair + 1]) * turn
            expected[t, 2 * pair], expected[t, 2 * pair + 1] = turned.real, turned.imag
    # The tables are float32, as published.
    torch.testing.assert_close(rope(tokens[None])[0], expected, atol=1e-5, rtol=0)


def test_rotation_keeps_lengths_and_depends_on_relative_places() -> None:
    rope = Rope(5, 8).double()
    query, key = random_table(2, 8)
    at = rope(torch.stack([query, key])[:, None].expand(-1, 25, -1).clone())
    torch.testing.assert_close(at[0].norm(dim=1), query.norm().expand(25), atol=1e-5, rtol=0)
    scores = (at[0] @ at[1].T).view(5, 5, 5, 5)
    torch.testing.assert_close(scores[0, 0, 2, 1], scores[2, 3, 4, 4], atol=1e-5, rtol=0)
    assert not math.isclose(scores[0, 0, 2, 1], scores[0, 0, 1, 2], abs_tol=1e-3)


def test_rotation_refuses_another_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="known for 16 tokens, not for 15"):
        Rope(4, 8)(torch.zeros(1, 15, 8))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_each_axis_of_any_grid_is_turned_as_much_as_the_trained_one(
    rows: int, columns: int, data: st.DataObject
) -> None:
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    token = random_table(1, 8)
    turned = Rope(4, 8).double()(token, torch.tensor([[row, column]]), (rows, columns))
    places = torch.tensor([row / rows, column / columns], dtype=torch.float64) * 14
    angle = (places[:, None] * torch.tensor([1.0, 10000**-0.5], dtype=torch.float64)).flatten()
    expected = torch.view_as_complex(token.view(4, 2)) * torch.polar(torch.ones_like(angle), angle)
    # On the training grid the angles are float32, as published.
    found = torch.view_as_complex(turned.view(4, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_sines_of_a_place_are_those_of_masked_autoencoders() -> None:
    row, column = 7, 100_003
    found = sincos_positions(torch.tensor([[row, column]]), 8)[0]
    expected = [
        wave(place * frequency)
        for place in (column, row)
        for wave in (math.sin, math.cos)
        for frequency in (1, 0.01)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["learned", "periodic", "sincos"]),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.data(),
)
def test_part_of_a_grid_has_the_positions_that_the_whole_has_there(
    position: Any, grid: tuple[int, int], data: st.DataObject
) -> None:
    torch.manual_seed(0)
    config = VisionMambaConfig(
        image_size=24, patch=8, stride=8, width=8, depth=1, classes=0, position=position
    )
    encoder = VisionMamba(config).double()
    rows, columns = grid
    index = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    cut = data.draw(st.integers(0, len(index)))
    with torch.no_grad():
        whole = encoder.position_for(rows, columns)
        parts = [encoder.position_for(rows, columns, part) for part in (index[:cut], index[cut:])]
        larger = encoder.position_for(rows + 5, columns + 3, index)
        beyond = encoder.position_for(99, 99, index + 3)
        trained = encoder.position_for(3, 3)
    assert whole is not None
    torch.testing.assert_close(torch.cat([p for p in parts if p is not None]), whole)
    # What is counted from the corner does not depend on the size of the image.
    assert position == "learned" or torch.equal(whole, larger)
    assert position != "periodic" or torch.equal(whole, beyond)
    if position == "periodic":
        table = encoder.pos_embed[0]
        assert torch.equal(trained, torch.cat([table[:4], table[5:]]))


def test_sines_and_cosines_share_the_numbers_of_a_token() -> None:
    with pytest.raises(ValueError, match="whole fours, not 10"):
        VisionMambaConfig(width=10, position="sincos")


def test_the_season_turns_with_the_year_and_an_unknown_day_has_none() -> None:
    first, last, spring, autumn, unknown = season_waves(
        torch.tensor([1.0, 366.0, 91.3, 274.0, torch.nan])
    )
    assert torch.dist(first, last) < 0.02
    assert torch.dist(spring, autumn) > 1.9
    assert torch.equal(unknown, torch.zeros(4, dtype=torch.float64))


def test_a_model_tells_the_season_only_if_it_was_taught() -> None:
    days = torch.tensor([10.0, 200.0])
    assert VisionMamba(VisionMambaConfig(width=16, depth=1, classes=0)).season_for(days) is None
    config = VisionMambaConfig(width=16, depth=1, classes=0, season=True)
    encoder = VisionMamba(config)
    assert torch.equal(encoder.season_for(days), torch.zeros(2, 16))
