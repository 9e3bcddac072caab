"""The Triton kernels, compiled for GPUs that need not be there: what launches would compile."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget

from gigavim.kernels.block import triton_launch as block_launch
from gigavim.kernels.scan import triton_launch, triton_plan
from gigavim.kernels.scan.triton_scan import Inputs

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64"}
ARCHITECTURES = [80, 90, 100]
SHARED = {80: 163, 90: 227, 100: 227}
"""KiB that a program may take."""
LANES = 32


class Launch(NamedTuple):
    """What a launch would compile."""

    name: str
    kernel: Any
    values: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int


class Code(NamedTuple):
    """Machine code of one kernel."""

    name: str
    constants: dict[str, Any]
    registers: int
    spilled: int
    shared: int
    lines: list[str]

    def loop(self) -> list[str]:
        """Return the longest loop."""
        labels: dict[str, int] = {}
        instructions: list[str] = []
        longest: list[str] = []
        for line in self.lines:
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label[1]] = len(instructions)
            if instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*);", line):
                instructions.append(instruction[1])
                target = re.search(r"BRA\b.*?(\.L_x_\d+)", instruction[1])
                start = labels.get(target[1]) if target else None
                if start is not None and len(instructions) - start > len(longest):
                    longest = instructions[start:]
        return longest


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Return what is launched from here on, in place of launching it."""
    recorded: list[Launch] = []

    def scan(name: str, _: int, params: Any, arguments: Any, constants: dict[str, Any]) -> None:
        values, tuned = (tuple(params), *arguments), triton_plan.TUNED[name]
        kernel = triton_launch.KERNELS[name]
        recorded.append(Launch(name, kernel, values, constants, tuned.warps, tuned.stages))

    def block(name: str, _: int, values: Any, constants: dict[str, Any], tuned: Any) -> None:
        kernel = block_launch.KERNELS[name]
        recorded.append(Launch(name, kernel, values, constants, tuned.warps, tuned.stages))

    monkeypatch.setattr(triton_launch, "run", scan)
    monkeypatch.setattr(block_launch, "run", block)
    monkeypatch.setattr(triton_plan, "processors", lambda _: 132)
    return recorded


def compile_for(architecture: int, launch: Launch, folder: Path) -> Code:
    """Compile as the launch would, with what it would specialise on."""
    name, kernel, values, constants, warps, stages = launch
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def signature(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            parts = [signature(part, (*path, i)) for i, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if isinstance(value, bool):
            return "u1"
        if isinstance(value, float):
            return "fp32"
        if not isinstance(value, Tensor) and value in (None, 1):
            fixed[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "*" + DTYPES[value.dtype] if isinstance(value, Tensor) else "i32"

    types = {kernel.arg_names[i]: signature(value, (i,)) for i, value in enumerate(values)}
    for key, value in constants.items():
        types[key] = "constexpr"
        fixed[(kernel.arg_names.index(key),)] = value
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, types, constexprs=fixed, attrs=attributes),
        target=GPUTarget("cuda", architecture, LANES),
        options={
            "num_warps": warps,
            "num_stages": stages,
            "enable_fp_fusion": True,
        },
    )
    cubin = folder / f"{name}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = tool("cuobjdump", "-res-usage", cubin)
    registers, stack, local = (
        int(re.search(rf"\b{key}:(\d+)", usage)[1])  # type: ignore[index]
        for key in ("REG", "STACK", "LOCAL")
    )
    lines = tool("nvdisasm", "-c", cubin).splitlines()
    return Code(name, constants, registers, stack + local, compiled.metadata.shared, lines)


def tool(name: str, *arguments: str | Path) -> str:
    return subprocess.run(
        [TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def vim_layer(dtype: torch.dtype, *, gate: bool) -> Inputs:
    """Return one direction of a Vim-Ti layer, 2**20 tokens, without their memory."""
    tokens, channels, states = 2**20, 384, 16

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Inputs(
        u=tensor(1, tokens, channels, dtype=dtype),
        dt=tensor(1, tokens, channels, dtype=dtype),
        A=tensor(channels, states),
        B=tensor(1, tokens, states),
        C=tensor(1, tokens, states),
        D=tensor(channels),
        z=tensor(1, tokens, channels, dtype=dtype) if gate else None,
        dt_bias=tensor(channels),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "gate"), [(torch.bfloat16, False), (torch.float32, True)], ids=["bf16", "f32 gated"]
)
def test_no_kernel_spills_registers(
    architecture: int, dtype: torch.dtype, gate: bool, launches: list[Launch], tmp_path: Path
) -> None:
    x = vim_layer(dtype, gate=gate)
    triton_launch.forward([x], None, True, [False], 0)
    triton_launch.backward([x], [x.u, None], None, True, [False], 0)
    assert {launch.name for launch in launches} == set(triton_launch.KERNELS)
    codes = [compile_for(architecture, launch, tmp_path) for launch in launches]
    for code in codes:
        block = code.constants["BLOCK"]
        print(
            f"sm_{architecture} {code.name} of {block} channels: {code.registers} registers, "
            f"{code.spilled} bytes spilled, {code.shared} bytes shared"
        )
    assert [code.name for code in codes if code.spilled] == []


def test_both_directions_fit_into_one_launch(launches: list[Launch], tmp_path: Path) -> None:
    x = vim_layer(torch.bfloat16, gate=False)
    triton_launch.forward([x, x], None, True, [False, True], 0)
    codes = [compile_for(90, launch, tmp_path) for launch in launches]
    assert [code.name for code in codes] == ["summarise", "prefix", "scan", "spoil"]
    assert [code.spilled for code in codes] == [0, 0, 0, 0]


def test_the_forward_loops_are_bound_by_exponentials(
    launches: list[Launch], tmp_path: Path
) -> None:
    # A scheduler issues one instruction of a warp a cycle, but one exponential in 8 cycles.
    x = vim_layer(torch.bfloat16, gate=False)
    triton_launch.forward([x], None, True, [False], 0)
    for launch in launches:
        if launch.name in ("prefix", "spoil"):
            continue
        code = compile_for(90, launch, tmp_path)
        loop = code.loop()
        exponentials = sum("MUFU.EX2" in line for line in loop)
        # Beside those of the states, softplus takes one for each channel.
        elements = exponentials * 16 / 17
        print(f"{code.name}: {len(loop) / elements:.2f} instructions for each state of a channel")
        assert len(loop) / elements < 8
        assert not any(re.search("SHFL|LDS|STS", line) for line in loop)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [192, 384], ids=["Vim-Ti", "Vim-S"])
def test_no_kernel_around_the_scan_spills_registers(
    architecture: int, dtype: torch.dtype, width: int, launches: list[Launch], tmp_path: Path
) -> None:
    tokens, channels, rank, states = 2**20, 2 * width, width // 16, 16

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def single(*shape: int) -> Tensor:
        return tensor(*shape, dtype=torch.float32)

    residual, wide = single(1, tokens, width), tensor(1, tokens, channels)
    block_launch.norm_project(residual, single(width), None, tensor(2 * channels, width), 1e-5)
    block_launch.conv_project(
        tensor(1, tokens, 2 * channels)[..., :channels], tensor(1, 3, channels),
        single(channels, 4), single(channels), tensor(rank + 2 * states, channels),
        tensor(channels, rank), True,
    )  # fmt: skip
    block_launch.gate_project(wide, wide, wide, tensor(width, channels), 0.5, None, residual, True)
    assert {launch.name for launch in launches} == set(block_launch.KERNELS)
    codes = [compile_for(architecture, launch, tmp_path) for launch in launches]
    for code, launch in zip(codes, launches, strict=True):
        print(
            f"sm_{architecture} {code.name} of {width} numbers in {dtype}, {launch.warps} warps: "
            f"{code.registers} registers, {code.spilled} bytes spilled, {code.shared} bytes shared"
        )
    assert [code.name for code in codes if code.spilled] == []
    assert max(code.shared for code in codes) <= SHARED[architecture] * 1024
