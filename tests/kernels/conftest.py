"""What the tests of the kernels scan, and how two scans are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gigavim.kernels.scan import library

Inputs = dict[str, Tensor]


@pytest.fixture(scope="session")
def scan_inputs() -> Callable[..., Inputs]:
    """Return random float64 inputs of a scan; constant B or C by name, groups for the rest."""

    def make(
        batch: int,
        length: int,
        channels: int,
        states: int,
        *,
        groups: int | None = None,
        constant: str = "",
        bare: bool = False,
        seed: int = 0,
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        def weights(name: str) -> Tensor:
            if name in constant:
                return random(channels, states)
            group = () if groups is None else (groups,)
            return random(batch, length, *group, states)

        inputs = {
            "u": random(batch, length, channels),
            "dt": random(batch, length, channels) - 1,
            "A": -4 * random(channels, states).abs(),
            "B": weights("B"),
            "C": weights("C"),
        }
        if not bare:
            inputs["D"] = random(channels)
            inputs["z"] = random(batch, length, channels)
            inputs["dt_bias"] = 0.1 * random(channels)
            inputs["h"] = random(batch, channels, states)
        return inputs

    return make


@pytest.fixture(scope="session")
def differentiate() -> Callable[..., dict[str, Tensor]]:
    """Return y, h and the gradients of every input, for random gradients of y and h, in float64."""

    def run(
        scan: Callable[..., tuple[Tensor, Tensor]],
        inputs: Inputs,
        dtype: torch.dtype,
        **options: Any,
    ) -> dict[str, Tensor]:
        leaves = {k: v.detach().to(dtype).requires_grad_() for k, v in inputs.items()}
        y, h = scan(**leaves, **options)
        generator = torch.Generator().manual_seed(1)
        weighted = [
            (x.double() * torch.randn(x.shape, dtype=torch.float64, generator=generator)).sum()
            for x in (y, h)
        ]
        gradients = torch.autograd.grad(sum(weighted), list(leaves.values()))
        named = {f"gradient of {k}": g for k, g in zip(leaves, gradients, strict=True)}
        return {k: v.detach().double() for k, v in {"y": y, "h": h, **named}.items()}

    return run


@pytest.fixture(scope="session")
def assert_near() -> Callable[[dict[str, Tensor], dict[str, Tensor], float], None]:
    """Compare by name; an error counts relative to the largest value that is expected."""

    def compare(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            if value.numel():
                error = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)
                assert error <= bound, f"{name} is off by {error:.1e} relative"

    return compare


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """Look for the library again, before and after the test."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@pytest.fixture(params=["avx512", "avx2", "generic"])
def build(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    """Run the test with each build of the C library that this CPU runs."""
    capabilities = {"avx512": "AVX512", "avx2": "AVX2", "generic": "DEFAULT"}
    best = library.TARGETS.get(torch.backends.cpu.get_cpu_capability(), ("generic",))
    if request.param not in best:
        pytest.skip(f"this CPU has no {request.param}")
    capability = capabilities[request.param]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if library.library_name() != request.param:
        pytest.skip(f"not built for {request.param}: {library.unavailable()}")
