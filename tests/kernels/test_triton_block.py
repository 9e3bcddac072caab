"""The kernels around the scan on the CPU, in Triton's interpreter, as in test_triton_scan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gigavim.architecture import VisionMambaConfig
from gigavim.kernels.block import (
    fused_block,
    fused_step,
    operators,
    reference,
)
from gigavim.mixer import Block, DirectionState

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's own process")
pytestmark = [
    # numpy, in which the interpreter computes, warns of infinities that are meant.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
WIDTH, CHANNELS, RANK, STATES, TAPS = 24, 48, 2, 3, 4
PROGRAM = 64
"""Tokens that a program takes of bfloat16; of float32 half as many."""
Tensors = dict[str, Tensor]


@pytest.mark.skipif(INTERPRETED, reason="would start itself")
def test_the_kernels_around_the_scan_pass_their_tests_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fill what is allocated with NaN, so that nothing may be left unwritten."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter, which keeps bfloat16 as integers, not multiply those."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            wide = [(x.data.astype(np.uint32) << 16).view(np.float32) for x in (a, b)]
            a, b = (TensorHandle(x, tl.float32) for x in wide)
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", exact_dot)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def normed(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "tokens": random(generator, batch, length, WIDTH),
        "norm_weight": random(generator, WIDTH),
        "norm_bias": random(generator, WIDTH),
        "weight": random(generator, 2 * CHANNELS, WIDTH) / WIDTH**0.5,
    }


def convolved(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "x": random(generator, batch, length, CHANNELS),
        "halo": random(generator, batch, TAPS - 1, CHANNELS),
        "taps": random(generator, CHANNELS, TAPS),
        "bias": random(generator, CHANNELS),
        "x_proj": random(generator, RANK + 2 * STATES, CHANNELS) / CHANNELS**0.5,
        "dt_proj": random(generator, CHANNELS, RANK),
    }


def gated(generator: torch.Generator, batch: int, length: int) -> Tensors:
    return {
        "y": random(generator, batch, length, CHANNELS),
        "y_reverse": random(generator, batch, length, CHANNELS),
        "z": random(generator, batch, length, CHANNELS),
        "weight": random(generator, WIDTH, CHANNELS) / CHANNELS**0.5,
        "gamma": random(generator, WIDTH),
    }


def norm(kernels: Any, x: dict[str, Any]) -> tuple[Tensor, ...]:
    return (kernels.norm_project(**x, eps=1e-5),)


def convolve(kernels: Any, x: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(kernels.conv_project(**x, reverse=False))


def convolve_in_reverse(kernels: Any, x: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(kernels.conv_project(**x, reverse=True))


def gate(kernels: Any, x: dict[str, Any]) -> tuple[Tensor, ...]:
    if kernels is reference:
        return (reference.gate_project(**x, scale=0.5),)
    out = x["y"].new_full((*x["y"].shape[:2], WIDTH), torch.nan)
    operators.gate_project(**x, scale=0.5, out=out, accumulate=False)
    return (out,)


Steps = list[tuple[Callable[..., Tensors], Callable[..., tuple[Tensor, ...]]]]
STEPS: Steps = [
    (normed, norm),
    (convolved, convolve),
    (convolved, convolve_in_reverse),
    (gated, gate),
]
steps = pytest.mark.parametrize(("inputs", "step"), STEPS, ids=[f.__name__ for _, f in STEPS])


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to the largest value."""
    assert found.shape == expected.shape
    if not found.numel():
        return 0.0
    return float((found.double() - expected).abs().max() / expected.abs().max())


@interpreted
@steps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "length", [0, 1, 2, 3, PROGRAM // 2 - 1, PROGRAM // 2 + 1, PROGRAM - 1, PROGRAM, PROGRAM + 1]
)
def test_every_step_is_as_exact_as_plain_pytorch(
    inputs: Callable[..., Tensors],
    step: Callable[..., tuple[Tensor, ...]],
    dtype: torch.dtype,
    length: int,
    generator: torch.Generator,
) -> None:
    x = {k: v.to(dtype) for k, v in inputs(generator, 1, length).items()}
    exact = step(reference, {k: v.double() for k, v in x.items()})
    plain = step(reference, x)
    for found, expected, by_pytorch in zip(step(operators, x), exact, plain, strict=True):
        assert (
            error(found, expected) <= 2 * error(by_pytorch, expected) + 2 * torch.finfo(dtype).eps
        )


@interpreted
@steps
@pytest.mark.parametrize("length", [1, 2, 23])
def test_sequences_of_a_batch_do_not_see_each_other(
    inputs: Callable[..., Tensors],
    step: Callable[..., tuple[Tensor, ...]],
    length: int,
    generator: torch.Generator,
) -> None:
    x = inputs(generator, 3, length)
    for found, expected in zip(step(operators, x), step(reference, x), strict=True):
        assert error(found, expected) < 1e-14


@interpreted
@steps
def test_what_need_not_be_given_may_be_left_out(
    inputs: Callable[..., Tensors],
    step: Callable[..., tuple[Tensor, ...]],
    generator: torch.Generator,
) -> None:
    x: dict[str, Any] = inputs(generator, 2, 5)
    x |= dict.fromkeys(x.keys() & {"norm_bias", "halo", "y_reverse", "gamma"})
    for found, expected in zip(step(operators, x), step(reference, x), strict=True):
        assert error(found, expected) < 1e-14


@interpreted
@steps
def test_nan_reaches_what_depends_on_it_and_nothing_else(
    inputs: Callable[..., Tensors],
    step: Callable[..., tuple[Tensor, ...]],
    generator: torch.Generator,
) -> None:
    x = {k: v.float() for k, v in inputs(generator, 2, 41).items()}
    clean = step(operators, x)
    next(iter(x.values()))[0, 37, 5] = torch.nan
    for found, before, expected in zip(step(operators, x), clean, step(reference, x), strict=True):
        spoilt = found.isnan()
        assert spoilt.any()
        assert torch.equal(spoilt, expected.isnan())
        assert torch.equal(found[~spoilt], before[~spoilt])


@interpreted
def test_the_last_step_adds_to_what_is_there(generator: torch.Generator) -> None:
    x = gated(generator, 2, 9)
    whole = random(generator, 2, 14, WIDTH)
    part = whole[:, 3:12]  # its sequences do not adjoin in memory
    expected = part + reference.gate_project(**x, scale=0.5)
    around = whole[:, 12:].clone()
    operators.gate_project(**x, scale=0.5, out=part, accumulate=True)
    assert error(part, expected) < 1e-14
    assert torch.equal(whole[:, 12:], around)


@interpreted
@steps
def test_memory_layout_does_not_matter(
    inputs: Callable[..., Tensors],
    step: Callable[..., tuple[Tensor, ...]],
    generator: torch.Generator,
) -> None:
    x = inputs(generator, 2, 5)
    dense = step(operators, x)
    wide = {k: torch.cat([v, v], -1)[..., : v.shape[-1]] for k, v in x.items()}
    turned = {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in x.items()}
    for views in (wide, turned):
        assert all(map(torch.equal, step(operators, views), dense))


@interpreted
def test_the_operators_are_what_compilers_are_told(generator: torch.Generator) -> None:
    torch.use_deterministic_algorithms(False)  # NaN is not equal to itself
    for name, x in (
        ("norm_project", normed(generator, 1, 3) | {"eps": 1e-5}),
        ("conv_project", convolved(generator, 1, 3) | {"reverse": True}),
        (
            "gate_project",
            gated(generator, 1, 3)
            | {"scale": 0.5, "out": torch.zeros(1, 3, WIDTH).double(), "accumulate": True},
        ),
    ):
        torch.library.opcheck(getattr(torch.ops.gigavim, name).default, (), x)


KINDS: list[dict[str, Any]] = [
    {},
    {"directions": "v1", "norm": "layer"},
    {"directions": "forward", "layer_scale": 0.3},
]


@interpreted
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=["v2", "v1", "forward"])
def test_a_whole_block_is_that_of_the_mixer(
    kind: dict[str, Any], generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    block = Block(VisionMambaConfig(width=WIDTH, state=STATES, **kind)).double()
    weights, residual = block.weights(), random(generator, 2, 19, WIDTH)
    added = block(residual)
    assert error(fused_block(residual, weights), added) < 1e-13
    assert error(fused_block(residual, weights, chunk=8), added) < 1e-13
    assert (
        error(fused_block(residual.clone(), weights, chunk=8, add=True), residual + added) < 1e-13
    )
    assert error(fused_block(residual.clone(), weights, add=True), residual + added) < 1e-13


@interpreted
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=["v2", "v1", "forward"])
def test_steps_carry_what_those_of_the_mixer_carry(
    kind: dict[str, Any], generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    block = Block(VisionMambaConfig(width=WIDTH, state=STATES, **kind)).double()
    weights, residual = block.weights(), random(generator, 1, 9, WIDTH)
    for reverse in [False, True][: len(weights.directions)]:
        state = DirectionState()
        h = halo = None
        for cut in (slice(0, 2), slice(2, 3), slice(3, 9)):
            expected, state = block.step(residual[:, cut], state, reverse=reverse)
            added, h, halo = fused_step(residual[:, cut], weights, h, halo, reverse=reverse)
            assert state.h is not None
            assert state.halo is not None
            assert error(added, expected) < 1e-13
            assert error(h, state.h) < 1e-13
            assert error(halo, state.halo) < 1e-13


@interpreted
@torch.no_grad()
def test_a_block_in_bfloat16_is_as_exact_as_that_of_the_mixer(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    block = Block(VisionMambaConfig(width=WIDTH, state=STATES))
    residual = random(generator, 1, 21, WIDTH).float()
    with torch.autocast("cpu", torch.bfloat16):
        weights, by_mixer = block.weights(), block(residual)
    expected = block.double()(residual.double())
    # The interpreter does not round to bfloat16, but cuts off.
    assert error(fused_block(residual, weights), expected) < 4 * error(by_mixer, expected)


def test_the_operators_can_be_imported_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import gigavim.kernels.block"
    subprocess.run([sys.executable, "-c", code], check=True)
