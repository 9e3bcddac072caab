from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, pad, silu

from gigavim.kernels import causal_conv


def random_inputs(length: int, taps: int, channels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(length)
    return (
        torch.randn(2, length, channels, dtype=torch.float64),
        torch.randn(channels, taps, dtype=torch.float64),
        torch.randn(channels, dtype=torch.float64),
    )


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_it_is_a_depthwise_convolution_that_looks_back(taps: int) -> None:
    x, weight, bias = random_inputs(9, taps)
    y, _ = causal_conv(x, weight, bias)
    expected = conv1d(pad(x.mT, (taps - 1, 0)), weight[:, None], bias, groups=5)
    torch.testing.assert_close(y, silu(expected).mT)


def test_backwards_is_forwards_in_the_mirror() -> None:
    x, weight, bias = random_inputs(9, 4)
    y, halo = causal_conv(x, weight, bias, reverse=True)
    y_mirrored, halo_mirrored = causal_conv(x.flip(1), weight, bias)
    torch.testing.assert_close(y, y_mirrored.flip(1))
    torch.testing.assert_close(halo, halo_mirrored.flip(1))


@given(
    length=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    taps=st.integers(1, 5),
    reverse=st.booleans(),
)
def test_a_sequence_may_be_cut_anywhere(
    length: int, cuts: list[int], taps: int, reverse: bool
) -> None:
    x, weight, bias = random_inputs(length, taps)
    y, last = causal_conv(x, weight, bias, reverse=reverse)
    edges = list(pairwise([0, *sorted(min(cut, length) for cut in cuts), length]))
    halo, parts = None, []
    for start, stop in reversed(edges) if reverse else edges:
        part, halo = causal_conv(x[:, start:stop], weight, bias, halo=halo, reverse=reverse)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts[::-1] if reverse else parts, 1), y)
    torch.testing.assert_close(halo, last)


def test_a_halo_does_not_keep_its_chunk_in_memory() -> None:
    x, weight, bias = random_inputs(1000, 4)
    _, halo = causal_conv(x, weight, bias)
    assert halo.untyped_storage().nbytes() == halo.nbytes


def test_all_inputs_have_gradients() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in random_inputs(6, 3))
    halo = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)
    for reverse in (False, True):

        def conv(
            x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, reverse: bool = reverse
        ) -> tuple[Tensor, Tensor]:
            return causal_conv(x, weight, bias, halo=halo, reverse=reverse)

        assert torch.autograd.gradcheck(conv, (x, weight, bias, halo))


@pytest.mark.parametrize(
    ("weight", "bias", "halo", "message"),
    [
        ((4, 4), (5,), None, r"weight \(5, k\)"),
        ((5, 4), (4,), None, r"bias \(5,\)"),
        ((5, 4), (5,), (2, 2, 5), r"halo must be \(2, 3, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    weight: tuple[int, ...], bias: tuple[int, ...], halo: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv(
            torch.zeros(2, 9, 5),
            torch.zeros(weight),
            torch.zeros(bias),
            halo=None if halo is None else torch.zeros(halo),
        )


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    taps=st.integers(1, 5),
    reverse=st.booleans(),
)
def test_packed_sequences_are_convolved_each_by_itself(
    lengths: list[int], taps: int, reverse: bool
) -> None:
    x, weight, bias = random_inputs(sum(lengths), taps)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    halo = torch.randn(len(lengths), taps - 1, 5, dtype=torch.float64)
    y, last = causal_conv(x[:1], weight, bias, halo=halo, reverse=reverse, offsets=offsets)
    parts = x[:1].split(lengths, 1)
    for i, (part, own) in enumerate(zip(parts, y.split(lengths, 1), strict=True)):
        expected = causal_conv(part, weight, bias, halo=halo[i : i + 1], reverse=reverse)
        torch.testing.assert_close((own, last[i : i + 1]), expected)


def test_packed_sequences_have_gradients() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in random_inputs(6, 3))
    offsets = torch.tensor([0, 2, 2, 6])
    halo = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor) -> tuple[Tensor, Tensor]:
        return causal_conv(x[:1], weight, bias, halo=halo, offsets=offsets)

    assert torch.autograd.gradcheck(conv, (x, weight, bias, halo))


@pytest.mark.parametrize(
    ("batch", "offsets", "message"),
    [
        (2, torch.tensor([0, 9]), r"tokens \(1, l, d\), not torch.int64, \(2,\), of \(2, 9, 5\)"),
        (1, torch.tensor([0, 8]), r"rise from 0 to 9, not \[0, 8\]"),
        (1, torch.tensor([0, 5, 4, 9]), "rise from 0 to 9"),
        (1, torch.tensor([0, 9], dtype=torch.int32), "int64"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(batch: int, offsets: Tensor, message: str) -> None:
    x, weight, bias = random_inputs(9, 4)
    with pytest.raises(ValueError, match=message):
        causal_conv(x[:batch], weight, bias, offsets=offsets)
