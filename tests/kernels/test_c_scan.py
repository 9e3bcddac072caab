from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gigavim.errors import KernelError
from gigavim.kernels import ScanInputs, bidirectional_scan, scan_backend, selective_scan
from gigavim.kernels.scan import c_scan, library, reference

needs_library = pytest.mark.skipif(
    library.unavailable() is not None, reason=str(library.unavailable())
)


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


@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler at install"
)
def test_an_install_with_a_compiler_scans_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)
    assert scan_backend("cpu", torch.float32).name == "c", library.unavailable()


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_each_build_is_the_reference(
    dtype: torch.dtype, bound: float, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = {k: v.to(dtype) for k, v in scan_inputs(2, 150, 37, 18, groups=1).items()}
    options = {"dt_softplus": True, "reverse": True}
    expected = differentiate(reference.selective_scan, inputs, torch.float64, **options)
    found = differentiate(c_scan.selective_scan, inputs, dtype, **options)
    assert_near(found, expected, bound)


@pytest.mark.usefixtures("build")
def test_bfloat16_is_rounded_as_pytorch_does() -> None:
    u = torch.randn(1, 70, 37).bfloat16()
    u[0, :4, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])
    D = torch.randn(37)
    D[:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # times a power of two: a tie
    u[0, 4:6, :2] = 2
    still = {"dt": torch.zeros(1, 70, 37), "A": torch.zeros(37, 0)}
    weights = torch.zeros(1, 70, 0)
    y, _ = c_scan.selective_scan(u, **still, B=weights, C=weights, D=D)
    torch.testing.assert_close(y, (u.float() * D).bfloat16(), rtol=0, atol=0, equal_nan=True)


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("batch", "channels"), [(1, 3), (1, 100), (3, 100), (5, 7)])
def test_the_number_of_threads_does_not_change_the_result(
    batch: int, channels: int, scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    inputs = scan_inputs(batch, 70, channels, 4)
    torch.set_num_threads(1)
    alone = differentiate(c_scan.selective_scan, inputs, torch.float32, dt_softplus=True)
    for threads in (2, 4, 7):
        torch.set_num_threads(threads)
        found = differentiate(c_scan.selective_scan, inputs, torch.float32, dt_softplus=True)
        assert torch.equal(found["y"], alone["y"])
        assert torch.equal(found["h"], alone["h"])
        assert_near(found, alone, 1e-5)


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("lengths", [[700], [130, 570], [0, 64, 1000, 1]], ids=str)
def test_threads_may_share_a_sequence(
    monkeypatch: pytest.MonkeyPatch,
    reverse: bool,
    lengths: list[int],
    scan_inputs: Any,
    differentiate: Any,
    assert_near: Any,
) -> None:
    monkeypatch.setattr(c_scan, "SEGMENT", 65)
    inputs = scan_inputs(1, sum(lengths), 3, 4)
    inputs["h"] = torch.randn(len(lengths), 3, 4, dtype=torch.float64)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    options = {"dt_softplus": True, "reverse": reverse, "offsets": offsets}
    torch.set_num_threads(9)
    found = differentiate(c_scan.selective_scan, inputs, torch.float32, **options)
    expected = differentiate(reference.selective_scan, inputs, torch.float64, **options)
    assert_near(found, expected, 1e-5)

    tokens = {k: inputs[k].float() for k in ("dt", "A", "B", "u", "dt_bias")}
    shared = c_scan.scan_summary(**tokens, **options)
    torch.set_num_threads(1)
    torch.testing.assert_close(shared, c_scan.scan_summary(**tokens, **options))


@pytest.mark.usefixtures("build", "threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"batch": 3}, None),
        ({"batch": 1, "groups": 5}, None),
        ({"batch": 2, "bare": True}, None),
        ({"batch": 1}, [30, 0, 65, 55]),
    ],
    ids=["", "groups", "bare", "packed"],
)
def test_both_directions_at_once_give_the_bits_of_each(
    options: dict[str, Any], lengths: list[int] | None, dtype: torch.dtype, scan_inputs: Any
) -> None:
    forward, backward = (
        {
            k: v.to(dtype)
            for k, v in scan_inputs(
                length=150, channels=35, states=18, seed=seed, **options
            ).items()
        }
        for seed in (0, 1)
    )
    offsets = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    if lengths is not None:
        del forward["h"]
        backward["h"] = torch.randn(len(lengths), 35, 18)
    torch.set_num_threads(1)
    expected = tuple(
        c_scan.selective_scan(**inputs, dt_softplus=True, reverse=reverse, offsets=offsets)
        for inputs, reverse in ((forward, False), (backward, True))
    )
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found = c_scan.bidirectional_scan(
            ScanInputs(**forward), ScanInputs(**backward), dt_softplus=True, offsets=offsets
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_library
@pytest.mark.usefixtures("threads")
def test_both_directions_at_once_may_share_a_sequence(
    monkeypatch: pytest.MonkeyPatch, scan_inputs: Any
) -> None:
    monkeypatch.setattr(c_scan, "SEGMENT", 65)
    torch.set_num_threads(9)
    forward, backward = (
        {k: v.float() for k, v in scan_inputs(1, 700, 3, 4, seed=seed).items()} for seed in (0, 1)
    )
    found = c_scan.bidirectional_scan(
        ScanInputs(**forward), ScanInputs(**backward), dt_softplus=True
    )
    expected = (
        c_scan.selective_scan(**forward, dt_softplus=True),
        c_scan.selective_scan(**backward, dt_softplus=True, reverse=True),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("scan", [pytest.param("c", marks=needs_library), "torch", "reference"])
def test_both_directions_at_once_have_the_gradients_of_each(
    monkeypatch: pytest.MonkeyPatch, scan: str, scan_inputs: Any
) -> None:
    monkeypatch.setenv("GIGAVIM_SCAN", scan)
    forward, backward = (
        {k: v.float().requires_grad_() for k, v in scan_inputs(2, 70, 6, 3, seed=seed).items()}
        for seed in (0, 1)
    )
    leaves = [*forward.values(), *backward.values()]
    (y, h), (y_reverse, h_reverse) = bidirectional_scan(
        ScanInputs(**forward), ScanInputs(**backward), dt_softplus=True
    )
    found = torch.autograd.grad((y * y_reverse).sum() + (h * h_reverse).sum(), leaves)
    y, h = selective_scan(**forward, dt_softplus=True)
    y_reverse, h_reverse = selective_scan(**backward, dt_softplus=True, reverse=True)
    expected = torch.autograd.grad((y * y_reverse).sum() + (h * h_reverse).sum(), leaves)
    torch.testing.assert_close(found, expected)


def test_both_directions_have_one_shape(scan_inputs: Any) -> None:
    forward, backward = (ScanInputs(**scan_inputs(1, length, 4, 3)) for length in (5, 6))
    with pytest.raises(ValueError, match="u must have one shape in both directions"):
        bidirectional_scan(forward, backward)


OPERATOR_INPUTS = pytest.mark.parametrize(
    ("options", "offsets"),
    [
        ({}, None),
        ({"groups": 3, "bare": True}, None),
        ({"constant": "C"}, None),
        ({"batch": 1}, torch.tensor([0, 3, 70])),
        ({"half": ("u", "dt", "z")}, None),
    ],
    ids=["", "groups", "constant", "packed", "bfloat16"],
)


@needs_library
@OPERATOR_INPUTS
@pytest.mark.parametrize("gradients", [False, True], ids=["", "gradients"])
def test_the_operators_are_what_they_claim_to_be(
    options: dict[str, Any], offsets: Tensor | None, gradients: bool, scan_inputs: Any
) -> None:
    half = options.get("half", ())
    options = {k: v for k, v in options.items() if k != "half"}
    inputs = scan_inputs(**{"batch": 2, "length": 70, "channels": 6, "states": 3} | options)
    if offsets is not None:
        inputs["h"] = inputs["h"].repeat(len(offsets) - 1, 1, 1)
    inputs |= {k: c_scan._per_token(inputs[k]) for k in "BC"}
    inputs = {
        k: v.to(torch.bfloat16 if k in half else torch.float32).requires_grad_(gradients)
        for k, v in inputs.items()
    }
    names = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "h")
    tensors = (*map(inputs.get, names), offsets)
    # Deterministic algorithms fill checkpoints with NaN, which is not equal to itself.
    torch.use_deterministic_algorithms(False)
    operators = torch.ops.gigavim
    torch.library.opcheck(operators.scan_forward, (*tensors, [True, False, gradients]))

    with torch.no_grad():
        y, h, s, checkpoints = operators.scan_forward(*tensors, [True, False, True])
    detached = [None if x is None else x.detach() for x in tensors]
    arguments = (*detached, [True, False, True], checkpoints, y, h, s)
    torch.library.opcheck(operators.scan_backward, arguments)


@needs_library
@OPERATOR_INPUTS
def test_the_operator_of_both_directions_is_what_it_claims_to_be(
    options: dict[str, Any], offsets: Tensor | None, scan_inputs: Any
) -> None:
    half = options.get("half", ())
    options = {k: v for k, v in options.items() if k != "half"}
    inputs = scan_inputs(**{"batch": 2, "length": 70, "channels": 6, "states": 3} | options)
    inputs = {k: v.to(torch.bfloat16 if k in half else torch.float32) for k, v in inputs.items()}
    if offsets is not None:
        inputs["h"] = inputs["h"].repeat(len(offsets) - 1, 1, 1)
    operands = c_scan._operands(**inputs)
    torch.library.opcheck(torch.ops.gigavim.scan_both, (operands, operands, offsets, True))


@needs_library
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_a_compiled_scan_is_whole_and_the_same(
    monkeypatch: pytest.MonkeyPatch, reverse: bool, scan_inputs: Any, differentiate: Any
) -> None:
    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)
    options = {"dt_softplus": True, "reverse": reverse}
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    for length in (70, 5):
        inputs = scan_inputs(2, length, 6, 3)
        found = differentiate(compiled, inputs, torch.float32, **options)
        expected = differentiate(selective_scan, inputs, torch.float32, **options)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)


@needs_library
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_an_exported_scan_is_whole_and_takes_any_length(
    monkeypatch: pytest.MonkeyPatch, strict: bool, scan_inputs: Any
) -> None:
    class Scan(torch.nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return selective_scan(**inputs, dt_softplus=True)

    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)
    inputs = {k: v.float() for k, v in scan_inputs(2, 70, 6, 3).items()}
    length = torch.export.Dim("length")
    lengths = {k: {1: length} if k in ("u", "dt", "B", "C", "z") else None for k in inputs}
    with torch.no_grad():
        program = torch.export.export(Scan(), (inputs,), dynamic_shapes=(lengths,), strict=strict)
        called = [str(node.target) for node in program.graph.nodes]
        assert called.count("gigavim.scan_forward.default") == 1
        inputs = {k: v.float() for k, v in scan_inputs(2, 131, 6, 3).items()}
        torch.testing.assert_close(program.module()(inputs), Scan()(inputs))


@needs_library
def test_two_runs_give_the_same_bits(scan_inputs: Any, differentiate: Any) -> None:
    inputs = scan_inputs(2, 200, 64, 16)
    first, second = (
        differentiate(c_scan.selective_scan, inputs, torch.float32, dt_softplus=True)
        for _ in range(2)
    )
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@needs_library
def test_gradients_may_come_from_the_state_alone(
    scan_inputs: Any, differentiate: Any, assert_near: Any
) -> None:
    def state_twice(scan: Any) -> Any:
        def run(**inputs: Any) -> Any:
            _, h = scan(**inputs, dt_softplus=True)
            return h, h

        return run

    # C and z have no part in the state.
    inputs = scan_inputs(2, 70, 6, 3, bare=True)
    C = inputs.pop("C")
    expected = differentiate(
        state_twice(lambda **x: reference.selective_scan(C=C, **x)), inputs, torch.float64
    )
    found = differentiate(
        state_twice(lambda **x: c_scan.selective_scan(C=C.float(), **x)), inputs, torch.float32
    )
    assert_near(found, expected, 1e-5)


@needs_library
def test_gradients_of_gradients_are_refused(scan_inputs: Any) -> None:
    leaves = {k: v.float().requires_grad_() for k, v in scan_inputs(1, 5, 4, 3).items()}
    y, _ = c_scan.selective_scan(**leaves)
    (gradient,) = torch.autograd.grad(y.square().sum(), leaves["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        gradient.sum().backward()


@pytest.mark.usefixtures("fresh_library")
def test_without_a_library_pytorch_scans_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scan_inputs: Any
) -> None:
    move_to(tmp_path, monkeypatch)
    for build in tmp_path.glob("*.so"):
        build.unlink()
    monkeypatch.delenv("GIGAVIM_SCAN", raising=False)
    backend = scan_backend("cpu", torch.float32)
    assert backend.name == "torch"
    assert "not built; install gcc or clang" in backend.reason
    y, _ = selective_scan(**{k: v.float() for k, v in scan_inputs(1, 5, 4, 3).items()})
    assert y.isfinite().all()

    monkeypatch.setenv("GIGAVIM_SCAN", "c")
    with pytest.raises(KernelError, match="not built; install gcc or clang"):
        scan_backend("cpu", torch.float32)


@needs_library
@pytest.mark.usefixtures("fresh_library")
def test_a_library_of_other_sources_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move_to(tmp_path, monkeypatch)
    with (tmp_path / "scan.c").open("a") as file:
        file.write("\n")
    assert "not built from" in str(library.unavailable())


@pytest.mark.usefixtures("fresh_library")
def test_a_library_that_does_not_load_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move_to(tmp_path, monkeypatch)
    for target in ("avx512", "avx2", "generic"):
        build = tmp_path / f"libgigavim_scan-{target}.so"
        build.unlink(missing_ok=True)
        build.write_bytes(b"not a library")
    assert "does not load" in str(library.unavailable())


def move_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the C scan look for its sources and libraries in a copy of its folder."""
    shutil.copytree(Path(library.__file__).parent, folder, dirs_exist_ok=True)
    monkeypatch.setattr(library, "__file__", os.fspath(folder / "library.py"))
