from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gigavim.kernels import c_conv, causal_conv, torch_conv
from gigavim.kernels.scan import library

needs_library = pytest.mark.skipif(
    library.unavailable() is not None, reason=str(library.unavailable())
)
NAMES = ("x", "weight", "bias", "halo")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, so that nothing unwritten passes for a result."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_inputs(
    batch: int, length: int, channels: int, taps: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((batch, length, channels), (channels, taps), (channels,), (batch, taps - 1, channels))
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def differentiate(
    conv: Any, inputs: dict[str, Tensor], dtype: torch.dtype, *options: Any
) -> dict[str, Tensor]:
    """Return y, the next halo and the gradients of every input, in float64."""
    leaves = {k: v.detach().to(dtype).requires_grad_() for k, v in inputs.items()}
    outputs = conv(*leaves.values(), *options)
    generator = torch.Generator().manual_seed(1)
    weighted = [(x.double() * torch.randn(x.shape, generator=generator)).sum() for x in outputs]
    gradients = torch.autograd.grad(sum(weighted), list(leaves.values()), materialize_grads=True)
    named = {f"gradient of {k}": g for k, g in zip(leaves, gradients, strict=True)}
    return {
        k: v.detach().double() for k, v in {"y": outputs[0], "halo": outputs[1], **named}.items()
    }


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("taps", [1, 3, 4, 16])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_each_build_is_the_definition(
    dtype: torch.dtype, bound: float, taps: int, reverse: bool, assert_near: Any
) -> None:
    for length, channels in ((0, 5), (1, 16), (9, 37), (30, 64)):
        inputs = random_inputs(2, length, channels, taps, dtype)
        found = differentiate(c_conv.causal_conv, inputs, dtype, reverse, None)
        expected = differentiate(torch_conv.causal_conv, inputs, torch.float64, reverse, None)
        assert_near(found, expected, bound)
        assert torch.equal(found["halo"], expected["halo"])


@needs_library
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    taps=st.integers(1, 5),
    reverse=st.booleans(),
)
def test_packed_sequences_are_convolved_each_by_itself(
    lengths: list[int], taps: int, reverse: bool
) -> None:
    inputs = random_inputs(1, sum(lengths), 7, taps)
    inputs["halo"] = torch.randn(len(lengths), taps - 1, 7)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    y, halo = c_conv.causal_conv(**inputs, reverse=reverse, offsets=offsets)
    for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
        one = inputs | {"x": inputs["x"][:, start:stop], "halo": inputs["halo"][i : i + 1]}
        own, edge = c_conv.causal_conv(**one, reverse=reverse, offsets=None)
        assert torch.equal(y[:, start:stop], own)
        assert torch.equal(halo[i : i + 1], edge)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    length=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    channels=st.sampled_from([3, 16, 21]),
    reverse=st.booleans(),
)
def test_no_bit_depends_on_where_a_sequence_is_cut(
    dtype: torch.dtype, length: int, cuts: list[int], channels: int, reverse: bool
) -> None:
    inputs = random_inputs(2, length, channels, 4, dtype)
    y, last = c_conv.causal_conv(**inputs, reverse=reverse, offsets=None)
    edges = list(pairwise([0, *sorted(min(cut, length) for cut in cuts), length]))
    halo, parts = inputs["halo"], []
    for start, stop in reversed(edges) if reverse else edges:
        chunk = inputs | {"x": inputs["x"][:, start:stop], "halo": halo}
        part, halo = c_conv.causal_conv(**chunk, reverse=reverse, offsets=None)
        parts.append(part)
    assert torch.equal(torch.cat(parts[::-1] if reverse else parts, 1), y)
    assert torch.equal(halo, last)


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("lengths", [[100], [0, 3, 97]], ids=str)
def test_no_bit_depends_on_the_number_of_threads(lengths: list[int]) -> None:
    inputs = random_inputs(1, 100, 37, 4)
    inputs["halo"] = inputs["halo"].repeat(len(lengths), 1, 1)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    torch.set_num_threads(1)
    alone = c_conv.causal_conv(**inputs, reverse=False, offsets=offsets)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        shared = c_conv.causal_conv(**inputs, reverse=False, offsets=offsets)
        assert all(map(torch.equal, shared, alone))


@needs_library
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    taps=st.integers(1, 5),
    reverse=st.booleans(),
)
def test_packed_sequences_have_the_gradients_of_the_definition(
    lengths: list[int], taps: int, reverse: bool
) -> None:
    inputs = random_inputs(1, sum(lengths), 19, taps)
    inputs["halo"] = torch.randn(len(lengths), taps - 1, 19)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    found = differentiate(c_conv.causal_conv, inputs, torch.float32, reverse, offsets)
    expected = differentiate(torch_conv.causal_conv, inputs, torch.float64, reverse, offsets)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-5, msg=name)


@needs_library
@pytest.mark.usefixtures("threads")
def test_no_bit_of_a_gradient_depends_on_the_number_of_threads() -> None:
    inputs = random_inputs(3, 200, 37, 4)
    torch.set_num_threads(1)
    alone = differentiate(c_conv.causal_conv, inputs, torch.float32, False, None)
    torch.set_num_threads(3)
    shared = differentiate(c_conv.causal_conv, inputs, torch.float32, False, None)
    assert all(torch.equal(shared[name], value) for name, value in alone.items())


@needs_library
def test_gradients_of_gradients_are_refused() -> None:
    inputs = [tensor.requires_grad_() for tensor in random_inputs(1, 9, 5, 4).values()]
    y, _ = c_conv.causal_conv(*inputs, False, None)
    (dx,) = torch.autograd.grad(y.sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="GIGAVIM_SCAN=torch"):
        dx.sum().backward()


@needs_library
def test_half_a_row_is_read_where_it_lies() -> None:
    inputs = random_inputs(2, 50, 37, 4)
    y, halo = c_conv.causal_conv(**inputs, reverse=True, offsets=None)
    inputs["x"] = torch.cat([inputs["x"], torch.full((2, 50, 37), torch.nan)], -1)[..., :37]
    found = c_conv.causal_conv(**inputs, reverse=True, offsets=None)
    assert torch.equal(found[0], y)
    assert torch.equal(found[1], halo)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_a_number_comes_out_where_it_is_seen_and_nowhere_else(
    dtype: torch.dtype,
) -> None:
    inputs = random_inputs(1, 30, 18, 4, dtype)
    y, _ = c_conv.causal_conv(**inputs, reverse=False, offsets=None)
    inputs["x"][0, 11, 2] = torch.nan
    found, _ = c_conv.causal_conv(**inputs, reverse=False, offsets=None)
    spoiled = torch.zeros_like(y, dtype=torch.bool)
    spoiled[0, 11:15, 2] = True
    assert torch.equal(found.isnan(), spoiled)
    assert torch.equal(found[~spoiled], y[~spoiled])


@needs_library
def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(1, 30, 18, 4)
    for name, conv in (("c", c_conv.causal_conv), ("torch", torch_conv.causal_conv)):
        monkeypatch.setenv("GIGAVIM_SCAN", name)
        y, _ = causal_conv(**inputs)
        assert torch.equal(y, conv(**inputs, reverse=False, offsets=None)[0]), name


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("offsets", "gradients"),
    [(None, False), (None, True), (torch.tensor([0, 3, 70]), True)],
    ids=["", "gradients", "packed"],
)
def test_the_operator_is_what_it_claims_to_be(
    dtype: torch.dtype, offsets: Tensor | None, gradients: bool
) -> None:
    inputs = random_inputs(1, 70, 6, 4)
    if offsets is not None:
        inputs["halo"] = inputs["halo"].repeat(2, 1, 1)
    inputs |= {name: inputs[name].to(dtype) for name in ("x", "halo")}
    tensors = [tensor.requires_grad_(gradients) for tensor in inputs.values()]
    torch.library.opcheck(torch.ops.gigavim.conv_forward, (*tensors, offsets, False))


@needs_library
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_a_compiled_convolution_is_whole_and_the_same(
    monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor) -> tuple[Tensor, Tensor]:
        return causal_conv(x, weight, bias, halo=halo, reverse=reverse)

    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for length in (70, 5):
        inputs = random_inputs(2, length, 6, 4)
        found = differentiate(compiled, inputs, torch.float32)
        for name, value in differentiate(conv, inputs, torch.float32).items():
            torch.testing.assert_close(found[name], value, msg=name)
