"""The Triton kernels on the CPU, in Triton's interpreter.

The interpreter replaces the compiler for a whole process, as soon as Triton is imported. So these
tests run in a process of their own, which the one test that runs elsewhere starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gigavim.kernels.scan import reference, triton_scan
from gigavim.kernels.scan.triton_scan import Inputs, scan_directions

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's own process")
pytestmark = [
    # numpy, in which the interpreter computes, warns of infinities that are meant.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
CHUNK = 16
PER_TOKEN = ("u", "dt", "B", "C", "z")


@pytest.mark.skipif(INTERPRETED, reason="would start itself")
def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
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


def chunked(reverse: bool, **inputs: Any) -> tuple[Tensor, Tensor]:
    softplus, offsets = inputs.pop("dt_softplus", True), inputs.pop("offsets", None)
    y, h = scan_directions(
        [Inputs(**inputs)], [reverse], dt_softplus=softplus, offsets=offsets, chunk=CHUNK
    )
    return y, h


@interpreted
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 2, "length": 21, "channels": 5, "states": 4},
        {"batch": 1, "length": 18, "channels": 33, "states": 16, "bare": True},
        {"batch": 1, "length": 34, "channels": 8, "states": 3, "groups": 2, "constant": "C"},
        {"batch": 1, "length": 17, "channels": 3, "states": 1, "constant": "BC"},
    ],
    ids=lambda shape: " ".join(f"{k}={v}" for k, v in shape.items()),
)
def test_values_and_gradients_are_those_of_the_reference(
    shape: dict[str, Any], reverse: bool, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = scan_inputs(**shape)
    options = {"dt_softplus": True, "reverse": reverse}
    expected = differentiate(reference.selective_scan, inputs, torch.float64, **options)
    assert_near(differentiate(chunked, inputs, torch.float64, **options), expected, 1e-12)


@interpreted
def test_float32_is_as_exact_as_it_can_be(
    scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = scan_inputs(1, 37, 5, 4)
    expected = differentiate(reference.selective_scan, inputs, torch.float64, dt_softplus=True)
    found = differentiate(chunked, inputs, torch.float32, reverse=False)
    assert_near(found, expected, 2e-6)


@interpreted
@pytest.mark.parametrize("length", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 61])
def test_sequences_of_any_length_are_scanned_in_both_directions_at_once(
    length: int, scan_inputs: Any, assert_near: Any
) -> None:
    both = [scan_inputs(1, length, 4, 3, seed=seed) for seed in (0, 1)]
    both = [{k: v.float() for k, v in inputs.items()} for inputs in both]
    directions = [Inputs(**inputs) for inputs in both]
    found = scan_directions(directions, [False, True], dt_softplus=True, chunk=CHUNK)
    for i, inputs in enumerate(both):
        y, h = reference.selective_scan(**inputs, dt_softplus=True, reverse=i == 1)
        assert_near({"y": found[2 * i], "h": found[2 * i + 1]}, {"y": y, "h": h}, 2e-6)


@interpreted
def test_two_directions_have_their_own_gradients(scan_inputs: Any, assert_near: Any) -> None:
    both = [scan_inputs(1, 18, 4, 3, seed=seed) for seed in (0, 1)]
    leaves = [v.requires_grad_() for inputs in both for v in inputs.values()]
    forward, backward = (Inputs(**inputs) for inputs in both)
    (y, _), (y_reverse, h) = triton_scan.bidirectional_scan(forward, backward, dt_softplus=True)
    found = torch.autograd.grad(y.sin().sum() + y_reverse.cos().sum() + h.sum(), leaves)

    y, _ = reference.selective_scan(**both[0], dt_softplus=True)
    y_reverse, h = reference.selective_scan(**both[1], dt_softplus=True, reverse=True)
    expected = torch.autograd.grad(y.sin().sum() + y_reverse.cos().sum() + h.sum(), leaves)
    names = [str(i) for i in range(len(leaves))]
    assert_near(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)), 1e-9)


def test_directions_of_different_shapes_are_refused(scan_inputs: Any) -> None:
    forward, backward = (Inputs(**scan_inputs(1, length, 4, 3)) for length in (5, 6))
    with pytest.raises(ValueError, match="same shapes in both directions"):
        triton_scan.bidirectional_scan(forward, backward)


@interpreted
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_packed_sequences_are_scanned_one_by_one(
    reverse: bool, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    offsets = torch.tensor([0, 0, 5, 22, 22, 39])
    inputs = scan_inputs(1, 39, 4, 3)
    inputs["h"] = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.manual_seed(2))

    def one_by_one(reverse: bool, **x: Tensor) -> tuple[Tensor, Tensor]:
        ys, hs = [], []
        for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
            part = {k: v[:, start:stop] if k in PER_TOKEN else v for k, v in x.items()}
            part["h"] = x["h"][i : i + 1]
            y, h = reference.selective_scan(**part, dt_softplus=True, reverse=reverse)
            ys, hs = [*ys, y], [*hs, h]
        return torch.cat(ys, 1), torch.cat(hs)

    expected = differentiate(one_by_one, inputs, torch.float64, reverse=reverse)
    found = differentiate(chunked, inputs, torch.float64, reverse=reverse, offsets=offsets)
    assert_near(found, expected, 1e-12)


@interpreted
@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_nan_spoils_its_token_and_none_before(name: str, reverse: bool, scan_inputs: Any) -> None:
    inputs = {k: v.float() for k, v in scan_inputs(1, 35, 4, 3).items()}
    clean, _ = chunked(reverse, **inputs)
    inputs[name][0, 20, 0] = torch.nan
    y, _ = chunked(reverse, **inputs)
    before = slice(21, None) if reverse else slice(None, 20)
    assert y[0, 20, 0].isnan()
    assert torch.equal(y[:, before], clean[:, before])
    if name in ("u", "dt", "z"):
        assert torch.equal(y[..., 1:], clean[..., 1:])


@interpreted
@pytest.mark.parametrize("name", ["u", "dt", "B"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_nan_spoils_its_channels_to_the_end_however_fast_states_decay(
    name: str, packed: bool, reverse: bool, scan_inputs: Any
) -> None:
    inputs = {k: v.float() for k, v in scan_inputs(1, 90, 4, 3).items()}
    inputs["dt"] += 30  # a chunk's summary ends after a few tokens
    offsets = torch.tensor([0, 80, 90]) if packed else None
    if packed:
        inputs["h"] = inputs["h"].expand(2, -1, -1)
    y_clean, h_clean = chunked(reverse, offsets=offsets, **inputs)
    at = 2 + CHUNK if not reverse else 77 - CHUNK  # far from where its chunk ends
    inputs[name][0, at, 0] = torch.nan
    y, h = chunked(reverse, offsets=offsets, **inputs)

    after = torch.zeros(90, dtype=torch.bool)
    after[slice(None, at + 1) if reverse else slice(at, 80 if packed else None)] = True
    channels = torch.tensor([True, name == "B", name == "B", name == "B"])
    spoilt = after[:, None] & channels
    assert torch.equal(y[0].isnan(), spoilt)
    assert torch.equal(y[0][~spoilt], y_clean[0][~spoilt])
    states = channels[:, None] & torch.tensor([True, name != "B", name != "B"])
    assert torch.equal(h[0].isnan(), states)
    assert torch.equal(h[0][~states], h_clean[0][~states])
    assert torch.equal(h[1:], h_clean[1:])


@interpreted
@pytest.mark.parametrize("dt", [0.0, 1e-5, 0.1, 30.0, 1e4])
def test_steps_may_be_short_or_long(dt: float, scan_inputs: Any, assert_near: Any) -> None:
    inputs = {k: v.float() for k, v in scan_inputs(1, 50, 4, 3).items()}
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    inputs["dt_bias"].zero_()
    y, h = chunked(False, dt_softplus=False, **inputs)
    y_expected, h_expected = reference.selective_scan(**{k: v.double() for k, v in inputs.items()})
    assert_near({"y": y, "h": h}, {"y": y_expected, "h": h_expected}, 2e-6)


@interpreted
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_scanned_in_float32(half: torch.dtype, scan_inputs: Any) -> None:
    inputs = {k: v.to(half) for k, v in scan_inputs(2, 20, 6, 3).items()}
    y, h = triton_scan.selective_scan(**inputs, dt_softplus=True)
    exact = {k: v.double() for k, v in inputs.items()}
    y_exact, h_exact = reference.selective_scan(**exact, dt_softplus=True)
    assert (y.dtype, h.dtype) == (half, torch.float32)
    torch.testing.assert_close(y, y_exact.to(half))
    torch.testing.assert_close(h, h_exact.float(), rtol=1e-4, atol=1e-5)


@interpreted
def test_memory_layout_does_not_matter(scan_inputs: Any) -> None:
    inputs = {k: v.float() for k, v in scan_inputs(2, 18, 6, 3, groups=2).items()}
    y, h = chunked(False, **inputs)
    inputs["u"] = torch.cat([inputs["u"], inputs["z"]], -1)[..., :6]
    inputs["dt"] = inputs["dt"].mT.contiguous().mT
    inputs["B"] = inputs["B"].movedim(0, -1).contiguous().movedim(-1, 0)
    inputs["A"] = inputs["A"].T.contiguous().T
    y_views, h_views = chunked(False, **inputs)
    assert torch.equal(y_views, y)
    assert torch.equal(h_views, h)


@interpreted
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_summaries_and_their_gradients_are_those_of_the_definition(
    reverse: bool, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = scan_inputs(1, 35, 4, 3)
    inputs = {k: inputs[k] for k in ("u", "dt", "A", "B", "dt_bias")}

    def definition(**x: Tensor) -> tuple[Tensor, Tensor]:
        s = reference.step_sizes(x["dt"], x["dt_bias"], True, torch.float64).sum(1)
        return s, reference.selective_scan(**x, C=x["B"], dt_softplus=True, reverse=reverse)[1]

    expected = differentiate(definition, inputs, torch.float64)
    assert_near(differentiate(chunked, inputs, torch.float64, reverse=reverse), expected, 1e-12)


@interpreted
def test_the_operator_is_what_compilers_are_told(scan_inputs: Any) -> None:
    inputs = Inputs(**{k: v.float() for k, v in scan_inputs(1, 3, 4, 3).items()})
    tensors = [x.requires_grad_() for x in inputs if x is not None]
    operator = torch.ops.gigavim.triton_scan.default
    torch.library.opcheck(operator, (tensors, None, True, [False], 0))


def test_the_module_can_be_imported_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import gigavim.kernels.scan.triton_scan"
    subprocess.run([sys.executable, "-c", code], check=True)
