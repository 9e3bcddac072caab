from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gigavim.errors import KernelError
from gigavim.kernels import combine, scan_backend, scan_summary, selective_scan
from gigavim.kernels.scan import c_scan, library, reference, torch_scan

C_SCAN = pytest.param(
    c_scan.selective_scan,
    torch.float32,
    1e-5,
    id="c",
    marks=pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable())),
)
SCANS = pytest.mark.parametrize(
    ("scan", "dtype", "bound"),
    [
        pytest.param(reference.selective_scan, torch.float64, 1e-9, id="reference"),
        pytest.param(torch_scan.selective_scan, torch.float64, 1e-9, id="torch"),
        C_SCAN,
    ],
)
FIXTURE_NAMES = {"u": "u", "delta": "dt", "A": "A", "D": "D", "z": "z", "delta_bias": "dt_bias"}


def channels_last(weights: Tensor) -> Tensor:
    """Turn the fixtures' (b, n, l) and (b, g, n, l) into (b, l, n) and (b, l, g, n)."""
    return weights if weights.ndim == 2 else weights.movedim(-1, 1)


@SCANS
@pytest.mark.parametrize("index", range(13))
def test_values_and_gradients_are_those_of_the_published_operator(
    shared: Path, scan: Any, dtype: torch.dtype, bound: float, index: int, assert_near: Any
) -> None:
    case = torch.load(shared / "fixtures" / "scan_op.pt", weights_only=True)["cases"][index]
    leaves = {
        key: case[key].to(dtype).requires_grad_()
        for key in (*FIXTURE_NAMES, "B", "C")
        if case[key] is not None
    }
    inputs = {FIXTURE_NAMES.get(key, key): value for key, value in leaves.items()}
    for key in ("u", "dt", "z"):
        if key in inputs:
            inputs[key] = inputs[key].mT
    for key in ("B", "C"):
        inputs[key] = channels_last(inputs[key])

    y, h = scan(**inputs, dt_softplus=case["delta_softplus"])
    gradients = torch.autograd.grad(y, list(leaves.values()), case["dout"].mT.to(dtype))

    found = {"y": y.detach().mT, "h": h.detach(), **dict(zip(leaves, gradients, strict=True))}
    expected = {"y": case["y"], "h": case["last_state"], **{k: case["grads"][k] for k in leaves}}
    assert_near({k: v.double() for k, v in found.items()}, expected, bound)


@pytest.mark.parametrize(
    "scan", [reference.selective_scan, torch_scan.selective_scan], ids=["reference", "torch"]
)
@pytest.mark.parametrize(
    ("batch", "length", "offsets"),
    [(2, 5, None), (1, 33, None), (1, 7, torch.tensor([0, 3, 3, 7]))],
    ids=["short", "chunks", "packed"],
)
def test_gradients_are_those_of_the_values(
    scan: Any, batch: int, length: int, offsets: Tensor | None, scan_inputs: Any
) -> None:
    inputs = scan_inputs(batch, length, 4, 3, groups=2)
    if offsets is not None:
        inputs["h"] = inputs["h"].repeat(3, 1, 1)
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(leaves, tensors, strict=True))
        result: tuple[Tensor, Tensor] = scan(
            **inputs, dt_softplus=True, reverse=True, offsets=offsets
        )
        return result

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)


@SCANS
@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 63, 64, 65, 97, 128, 131])
def test_a_sequence_may_have_any_length(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    length: int,
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(2, length, 5, 3)
    expected = differentiate(reference.selective_scan, inputs, torch.float64, dt_softplus=True)
    assert_near(differentiate(scan, inputs, dtype, dt_softplus=True), expected, bound)


@SCANS
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("softplus", [False, True], ids=["", "softplus"])
@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "z"])
@pytest.mark.parametrize("token", [0, 40, 63, 64, 149])
def test_what_is_not_a_number_comes_out_there_and_nowhere_before(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    reverse: bool,
    softplus: bool,
    name: str,
    token: int,
    scan_inputs: Any,
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(1, 150, 18, 17).items()}
    if not softplus:
        inputs["dt"] = inputs["dt"].abs()
    options = {"dt_softplus": softplus, "reverse": reverse}
    y, _ = scan(**inputs, **options)
    inputs[name] = inputs[name].clone()
    inputs[name][0, token, 2] = torch.nan
    found, last = scan(**inputs, **options)

    stays = name in ("u", "dt", "B")
    after = slice(None, token + 1) if reverse else slice(token, None)
    spoiled = torch.zeros_like(y, dtype=torch.bool)
    rows = spoiled[:, after] if stays else spoiled[:, token : token + 1]
    rows[..., slice(None) if name in ("B", "C") else 2] = True
    assert torch.equal(found.isnan(), spoiled)
    assert torch.equal(found[~spoiled], y[~spoiled])
    assert last.isnan().any() == stays


SHAPES = pytest.mark.parametrize(
    "shape",
    [
        {"batch": 2, "length": 70, "channels": 20, "states": 16},
        {"batch": 1, "length": 64, "channels": 32, "states": 16, "bare": True},
        {"batch": 3, "length": 1, "channels": 3, "states": 1},
        {"batch": 2, "length": 130, "channels": 12, "states": 5, "groups": 3},
        {"batch": 1, "length": 65, "channels": 17, "states": 4, "constant": "BC"},
        {"batch": 2, "length": 33, "channels": 8, "states": 3, "groups": 2, "constant": "C"},
        {"batch": 2, "length": 33, "channels": 8, "states": 3, "constant": "B", "bare": True},
    ],
    ids=lambda shape: " ".join(f"{k}={v}" for k, v in shape.items()),
)


@SCANS
@SHAPES
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("softplus", [False, True], ids=["", "softplus"])
def test_values_and_gradients_are_those_of_the_reference(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    shape: dict[str, Any],
    reverse: bool,
    softplus: bool,
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(**shape)
    if not softplus:
        inputs["dt"] = inputs["dt"].abs()
    options = {"dt_softplus": softplus, "reverse": reverse}
    expected = differentiate(reference.selective_scan, inputs, torch.float64, **options)
    assert_near(differentiate(scan, inputs, dtype, **options), expected, bound)


@SCANS
@pytest.mark.parametrize("dt", [0.0, 1e-5, 30.0, 1e4])
def test_steps_may_be_short_or_long(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    dt: float,
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(1, 70, 5, 17)
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    inputs["dt_bias"].zero_()
    inputs["A"] -= 0.1
    expected = differentiate(reference.selective_scan, inputs, torch.float64)
    assert_near(differentiate(scan, inputs, dtype), expected, bound)


@SCANS
def test_a_step_of_zero_leaves_the_state_as_it_is(
    scan: Any, dtype: torch.dtype, bound: float, scan_inputs: Any
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(1, 100, 4, 3, bare=True).items()}
    h = torch.randn(1, 4, 3, dtype=dtype)
    _, last = scan(**inputs | {"dt": torch.zeros_like(inputs["dt"])}, h=h)
    assert torch.equal(last, h)


@SCANS
@given(
    length=st.integers(1, 150),
    cuts=st.lists(st.integers(0, 150), max_size=4),
    reverse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_sequence_may_be_cut_anywhere(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    length: int,
    cuts: list[int],
    reverse: bool,
    seed: int,
    scan_inputs: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(2, length, 6, 3, seed=seed)
    inputs = {k: v.to(dtype) for k, v in inputs.items()}
    y, last = scan(**inputs, dt_softplus=True, reverse=reverse)

    h, parts = inputs["h"], []
    edges = list(pairwise(sorted({0, length, *(min(cut, length) for cut in cuts)})))
    for start, stop in reversed(edges) if reverse else edges:
        per_token = {k: inputs[k][:, start:stop] for k in ("u", "dt", "B", "C", "z")}
        part, h = scan(**inputs | per_token | {"h": h}, dt_softplus=True, reverse=reverse)
        parts.append(part)
    whole = torch.cat(parts[::-1] if reverse else parts, 1)
    tight = 1e-10 if dtype == torch.float64 else 1e-5
    assert_near({"y": whole, "h": h}, {"y": y, "h": last}, tight)


@SCANS
def test_backwards_is_forwards_in_the_mirror(
    scan: Any, dtype: torch.dtype, bound: float, scan_inputs: Any
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(2, 70, 6, 3).items()}
    mirrored = {k: inputs[k].flip(1) for k in ("u", "dt", "B", "C", "z")}
    y, h = scan(**inputs, dt_softplus=True, reverse=True)
    y_mirrored, h_mirrored = scan(**inputs | mirrored, dt_softplus=True)
    torch.testing.assert_close(y, y_mirrored.flip(1))
    torch.testing.assert_close(h, h_mirrored)


@SCANS
@pytest.mark.parametrize(("batch", "length", "channels"), [(2, 0, 5), (0, 4, 5), (2, 4, 0)])
def test_an_empty_scan_returns_the_state_it_was_given(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    batch: int,
    length: int,
    channels: int,
    scan_inputs: Any,
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(batch, length, channels, 3).items()}
    y, h = scan(**inputs)
    assert y.shape == (batch, length, channels)
    assert torch.equal(h, inputs["h"])


@SCANS
def test_memory_layout_does_not_matter(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(2, 70, 6, 3, groups=2)
    expected = differentiate(scan, inputs, dtype, dt_softplus=True)

    def scan_views(**x: Any) -> tuple[Tensor, Tensor]:
        x["u"] = torch.cat([x["u"], x["z"]], -1)[..., :6]
        x["dt"] = x["dt"].mT.contiguous().mT
        x["z"] = x["z"].repeat_interleave(2, 1)[:, ::2]
        x["B"] = x["B"].movedim(0, -1).contiguous().movedim(-1, 0)
        x["C"] = x["C"].mT.contiguous().mT
        x["A"] = x["A"].T.contiguous().T
        return scan(**x, dt_softplus=True)

    assert_near(differentiate(scan_views, inputs, dtype), expected, bound)


@SCANS
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_scanned_in_float32(
    scan: Any, dtype: torch.dtype, bound: float, half: torch.dtype, scan_inputs: Any
) -> None:
    inputs = {k: v.to(half) for k, v in scan_inputs(2, 100, 6, 3).items()}
    y, h = scan(**inputs, dt_softplus=True)
    exact = {k: v.double() for k, v in inputs.items()}
    y_exact, h_exact = reference.selective_scan(**exact, dt_softplus=True)
    assert (y.dtype, h.dtype) == (half, torch.float32)
    torch.testing.assert_close(y, y_exact.to(half))
    torch.testing.assert_close(h, h_exact.float(), rtol=1e-4, atol=1e-5)


@SCANS
@given(
    first=st.integers(0, 40), second=st.integers(0, 40), reverse=st.booleans(), soft=st.booleans()
)
def test_summaries_of_segments_combine_to_the_state_after_them(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    first: int,
    second: int,
    reverse: bool,
    soft: bool,
    scan_inputs: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(2, first + second, 6, 3)
    if not soft:
        inputs["dt"] = inputs["dt"].abs()
        inputs["dt_bias"] = inputs["dt_bias"].abs()
    inputs = {k: v.to(dtype) for k, v in inputs.items()}
    options = {"dt_softplus": soft, "reverse": reverse}
    _, last = scan(**inputs, **options)

    A = inputs["A"]
    summary = (torch.zeros_like(inputs["h"][..., 0]), inputs["h"])
    segments = [slice(0, first), slice(first, None)]
    for segment in reversed(segments) if reverse else segments:
        tokens = {k: inputs[k][:, segment] for k in ("u", "dt", "B")}
        part = scan_summary(A=A, dt_bias=inputs["dt_bias"], **tokens, **options)
        summary = combine(summary, part, A)
    assert_near({"h": summary[1]}, {"h": last}, 1e-10 if dtype == torch.float64 else 1e-5)


PACKS = pytest.mark.parametrize(
    "lengths", [[1], [0, 2], [63, 64, 65], [0, 5, 0, 131, 2, 0], [1] * 9, [200, 3]], ids=str
)


def alone(inputs: dict[str, Tensor], i: int, start: int, stop: int) -> dict[str, Tensor]:
    """Return the inputs of sequence i of several end to end."""
    one = {k: inputs[k][:, start:stop] for k in ("u", "dt", "B", "C", "z") if inputs[k].ndim > 2}
    return inputs | one | {"h": inputs["h"][i : i + 1]}


@SCANS
@PACKS
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("constant", ["", "BC"])
def test_packed_sequences_are_scanned_each_by_itself(
    scan: Any,
    dtype: torch.dtype,
    bound: float,
    lengths: list[int],
    reverse: bool,
    constant: str,
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    inputs = scan_inputs(1, sum(lengths), 20, 5, constant=constant)
    inputs["h"] = torch.randn(len(lengths), 20, 5, dtype=torch.float64)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    options = {"dt_softplus": True, "reverse": reverse}

    def one_by_one(**leaves: Tensor) -> tuple[Tensor, Tensor]:
        each = [
            reference.selective_scan(**alone(leaves, i, *bounds), **options)
            for i, bounds in enumerate(pairwise(offsets.tolist()))
        ]
        y, h = zip(*each, strict=True)
        return torch.cat(y, 1), torch.cat(h)

    expected = differentiate(one_by_one, inputs, torch.float64)
    found = differentiate(scan, inputs, dtype, **options, offsets=offsets)
    assert_near(found, expected, bound)


@PACKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_sequences_are_summarised_each_by_itself(
    dtype: torch.dtype, lengths: list[int], scan_inputs: Any
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(1, sum(lengths), 20, 5).items()}
    inputs = {k: inputs[k] for k in ("u", "dt", "A", "B", "dt_bias")}
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    s, h = scan_summary(**inputs, dt_softplus=True, offsets=offsets)
    for i, (start, stop) in enumerate(pairwise(offsets.tolist())):
        own = {k: inputs[k][:, start:stop] for k in ("u", "dt", "B")}
        expected = scan_summary(**inputs | own, dt_softplus=True)
        torch.testing.assert_close((s[i : i + 1], h[i : i + 1]), expected)


@pytest.mark.parametrize("name", ["reference", "torch", "c"])
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([0, 4]), "rise from 0 to 5"),
        (torch.tensor([1, 5]), "rise from 0 to 5"),
        (torch.tensor([0, 3, 2, 5]), "rise from 0 to 5"),
        (torch.tensor([0, 5], dtype=torch.int32), "int64"),
        (torch.tensor([], dtype=torch.int64), r"\(k \+ 1,\)"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, offsets: Tensor, message: str, scan_inputs: Any
) -> None:
    if name == "c" and library.unavailable():
        pytest.skip(str(library.unavailable()))
    monkeypatch.setenv("GIGAVIM_SCAN", name)
    inputs = {k: v.float() for k, v in scan_inputs(1, 5, 4, 3, bare=True).items()}
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs, offsets=offsets)


def test_only_a_batch_of_one_holds_packed_sequences(scan_inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"of tokens \(1, l, d\)"):
        selective_scan(**scan_inputs(2, 5, 4, 3), offsets=torch.tensor([0, 5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_summaries_are_differentiable(
    dtype: torch.dtype, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = scan_inputs(2, 70, 6, 3)
    inputs = {k: inputs[k] for k in ("u", "dt", "A", "B", "dt_bias")}

    def definition(**leaves: Tensor) -> tuple[Tensor, Tensor]:
        s = reference.step_sizes(leaves["dt"], leaves["dt_bias"], True, torch.float64).sum(1)
        return s, reference.selective_scan(**leaves, C=leaves["B"], dt_softplus=True)[1]

    expected = differentiate(definition, inputs, torch.float64)
    found = differentiate(scan_summary, inputs, dtype, dt_softplus=True)
    assert_near(found, expected, 1e-9 if dtype == torch.float64 else 1e-5)


@given(st.integers(0, 2**16))
def test_combine_is_associative_and_has_an_identity(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    A = -torch.rand(4, 3, dtype=torch.float64, generator=generator)
    a, b, c = (
        (
            torch.rand(2, 4, dtype=torch.float64, generator=generator),
            torch.randn(2, 4, 3, dtype=torch.float64, generator=generator),
        )
        for _ in range(3)
    )
    one = (torch.zeros_like(a[0]), torch.zeros_like(a[1]))
    torch.testing.assert_close(combine(combine(a, b, A), c, A), combine(a, combine(b, c, A), A))
    torch.testing.assert_close(combine(one, a, A), a)
    torch.testing.assert_close(combine(a, one, A), a)


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_the_environment_overrides_the_choice(
    monkeypatch: pytest.MonkeyPatch, name: str, scan_inputs: Any
) -> None:
    monkeypatch.setenv("GIGAVIM_SCAN", name)
    backend = scan_backend("cpu", torch.float32)
    assert backend == (name, f"asked for by GIGAVIM_SCAN={name}")
    inputs = scan_inputs(1, 5, 4, 3)
    scan = {"reference": reference, "torch": torch_scan}[name].selective_scan
    assert torch.equal(selective_scan(**inputs)[0], scan(**inputs)[0])


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "message"),
    [
        (
            "fast",
            "cpu",
            torch.float32,
            "GIGAVIM_SCAN=fast: there is no such scan; use reference, torch, c",
        ),
        ("c", "cpu", torch.float64, "GIGAVIM_SCAN=c cannot run: .*no float64; unset it"),
        ("c", "meta", torch.float32, "GIGAVIM_SCAN=c cannot run: .* not on meta; unset it"),
    ],
)
def test_an_asked_for_scan_is_never_silently_replaced(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, dtype: torch.dtype, message: str
) -> None:
    monkeypatch.setenv("GIGAVIM_SCAN", asked)
    with pytest.raises(KernelError, match=message):
        scan_backend(device, dtype)


def test_the_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)
    assert scan_backend("cpu", torch.float64) == (
        "torch",
        "plain PyTorch, because the C library has no float64",
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 5), "u must be"),
        ("dt", (2, 4, 4), r"dt must be \(2, 5, 4\)"),
        ("A", (3, 3), r"A must be \(4, 3\)"),
        ("B", (2, 5, 3, 3), r"B must be .* with g dividing d"),
        ("C", (5, 3), "C must be"),
        ("D", (3,), r"D must be \(4,\)"),
        ("z", (2, 5, 3), "z must be"),
        ("dt_bias", (1,), "dt_bias must be"),
        ("h", (2, 3, 4), r"h must be \(2, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], message: str, scan_inputs: Any
) -> None:
    inputs = scan_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match=message):
        selective_scan(**inputs | {name: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize("name", ["dt", "A", "B", "h"])
def test_tensors_of_two_devices_are_refused(name: str, scan_inputs: Any) -> None:
    inputs = scan_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match=f"{name} must be on cpu like u, not on meta"):
        selective_scan(**inputs | {name: inputs[name].to("meta")})
