"""Figures of a GPU: ``python benchmarks/gpu.py [check|tune|scan|block|length|models]``.

- check: against the definitions, twice for equal bits, and beyond 2**32 values in a tensor;
- tune: each kernel's other shapes, one at a time, for the tables in kernels/*/triton_plan.py;
- scan: beside mamba-ssm's CUDA kernel, and beside what the GPU's exponentials allow;
- block: each step of a block, and the whole, beside plain PyTorch with the same scan;
- length: time of a token by the length of the sequence;
- models: Vim-Ti beside DeiT-Ti (timm) with plain and with fused attention.

By default all, within ten minutes; what follows the tuning is measured with its best. One JSON line
a result; what is not installed is "open". Scanned is a Vim-Ti layer, both directions, with bias,
softplus and skip: its gate is applied once, outside of the scan. Products are in bfloat16. For
errors of memory run `compute-sanitizer python benchmarks/gpu.py check`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gigavim.kernels.block import BlockWeights, DirectionWeights, fused_block, operators
from gigavim.kernels.block import reference as plain_steps
from gigavim.kernels.scan import reference, torch_scan
from gigavim.kernels.scan.triton_scan import Inputs, bidirectional_scan, scan_summary
from gigavim.kernels.scan.triton_scan import selective_scan as triton_scan
from gigavim.models import vim_tiny

WIDTH, CHANNELS, STATES, RANK, TAPS = 192, 384, 16, 12, 4
DEVICE = "cuda"
Row = dict[str, Any]


def main() -> None:
    figures = {
        "check": check,
        "tune": tune,
        "scan": scan,
        "block": block,
        "length": length,
        "models": models,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", help=", ".join(figures))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no figures: PyTorch finds no GPU here")
    for name in args.figures or figures:
        if name not in figures:
            parser.error(f"there is no figure {name}: {', '.join(figures)}")
        for row in figures[name]():
            head = {"benchmark": f"gpu {name}", "gpu": torch.cuda.get_device_name()}
            print(json.dumps(head | row), flush=True)


def layer(batch: int, tokens: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Inputs:
    """Return one direction of a Vim-Ti layer, with step sizes of 0.001 to 0.1 as at its start."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=DEVICE, generator=generator)

    return Inputs(
        u=random(batch, tokens, CHANNELS, dtype=dtype),
        dt=random(batch, tokens, CHANNELS, dtype=dtype),
        A=-torch.arange(1.0, STATES + 1, device=DEVICE) * (1 + 0.1 * random(CHANNELS, 1)),
        B=random(batch, tokens, STATES),
        C=random(batch, tokens, STATES),
        D=torch.ones(CHANNELS, device=DEVICE),
        dt_bias=torch.linspace(-7, -2.25, CHANNELS, device=DEVICE),
    )


def check() -> Iterator[Row]:
    for tokens in (1, 197, 1031, 5003):
        x = layer(1, tokens, torch.float32)
        exact = Inputs(*(None if v is None else v.double() for v in x))  # type: ignore[arg-type]
        for reverse in (False, True):
            y, h = triton_scan(**x._asdict(), dt_softplus=True, reverse=reverse)
            y_exact, h_exact = reference.selective_scan(
                **exact._asdict(), dt_softplus=True, reverse=reverse
            )
            error = max(relative(y, y_exact), relative(h, h_exact))
            yield {"tokens": tokens, "reverse": reverse, "error": error, "ok": error < 1e-5}

    for tokens, dtype, bound in [(1031, torch.float32, 1e-4), (5003, torch.bfloat16, 3e-2)]:
        for name, work, exactly in steps(tokens, dtype):
            results = zip(work(), exactly(torch.float64), strict=True)
            error = max(relative(found, expected) for found, expected in results)
            yield {"step": name, "tokens": tokens, "error": error, "ok": error < bound}

    x = layer(2, 517, torch.float32)
    exact = Inputs(*(None if v is None else v.double() for v in x))  # type: ignore[arg-type]
    errors = map(relative, gradients(triton_scan, x), gradients(reference.selective_scan, exact))
    error = max(errors)
    yield {"gradients": True, "error": error, "ok": error < 1e-4}

    x = layer(1, 2**17)
    twice = [gradients(triton_scan, x) for _ in range(2)]
    yield {"equal_bits": True, "ok": all(map(torch.equal, *twice))}

    tokens, tail = 11_500_000, 2**20
    x = layer(1, tokens)
    y, h = triton_scan(**x._asdict(), dt_softplus=True)
    per_token = {"u": x.u, "dt": x.dt, "B": x.B}
    before: Row = {name: tensor[:, :-tail] for name, tensor in per_token.items()}
    after: Row = {name: tensor[:, -tail:] for name, tensor in per_token.items()}
    assert x.C is not None
    C_tail = x.C[:, -tail:]
    _, start = scan_summary(A=x.A, dt_bias=x.dt_bias, dt_softplus=True, **before)
    y_tail, h_tail = torch_scan.selective_scan(
        **after, A=x.A, C=C_tail, D=x.D, dt_bias=x.dt_bias, dt_softplus=True, h=start
    )
    error = relative(y[:, -tail:], y_tail)
    yield {
        "tokens": tokens,
        "values": tokens * CHANNELS,
        "error": error,
        "error_of_state": relative(h, h_tail),
        "ok": error < 1e-2 and relative(h, h_tail) < 1e-5,
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def gradients(scan: Callable[..., Any], x: Inputs) -> list[Tensor]:
    leaves = {k: v.detach().requires_grad_() for k, v in x._asdict().items() if v is not None}
    y, h = scan(**leaves, dt_softplus=True)
    return list(torch.autograd.grad(y.double().sin().sum() + h.sum(), list(leaves.values())))


def directions(batch: int, tokens: int) -> tuple[Inputs, Inputs]:
    return layer(batch, tokens, seed=0), layer(batch, tokens, seed=1)


def forward(both: tuple[Inputs, Inputs]) -> Callable[[], object]:
    def work() -> object:
        with torch.inference_mode():
            return bidirectional_scan(*both, dt_softplus=True)

    return work


def forward_and_backward(both: tuple[Inputs, Inputs]) -> Callable[[], object]:
    for x in both:
        for tensor in x:
            if tensor is not None:
                tensor.requires_grad_()
    inputs = [tensor for x in both for tensor in x if tensor is not None]
    dy = torch.randn_like(both[0].u)

    def work() -> object:
        (y, _), (y_reverse, _) = bidirectional_scan(*both, dt_softplus=True)
        return torch.autograd.grad([y, y_reverse], inputs, [dy, dy])

    return work


def mamba(both: tuple[Inputs, Inputs], *, backward: bool) -> Callable[[], object] | None:
    """Return the same with mamba-ssm's kernel, run once for each direction, or None.

    Its layout is (b, d, l); neither the copies nor the flips of a direction count.
    """
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return None
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    calls = []
    for x in both:
        u, dt, B, C = (v.detach().mT.contiguous() for v in (x.u, x.dt, x.B, x.C) if v is not None)
        leaves = [v.requires_grad_(backward) for v in (u, dt, x.A.detach().clone(), B, C)]
        options = {"delta_bias": x.dt_bias, "delta_softplus": True}
        calls.append((leaves, x.D, options))
    inputs = [leaf for leaves, _, _ in calls for leaf in leaves]
    dy = torch.randn_like(inputs[0])

    def work() -> object:
        with torch.set_grad_enabled(backward):
            ys = [scan(*leaves, D, **options) for leaves, D, options in calls]
        return torch.autograd.grad(ys, inputs, [dy, dy]) if backward else ys

    return work


def milliseconds(work: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(work, warmup=200, rep=1000, return_mode="median"))


def exp_limit_ms(tokens: int) -> float:
    """Return how long the exponentials of both directions alone take: 16 a cycle and processor."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz = float(
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    )
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    exponentials = 2 * tokens * CHANNELS * (STATES + 1)
    return exponentials / (16 * processors * megahertz * 1e3)


def scan() -> Iterator[Row]:
    cases = [(1, 2**20, False), (64, 197, False), (1, 2**18, True)]
    for batch, tokens, backward in cases:
        both = directions(batch, tokens)
        ours = milliseconds(forward_and_backward(both) if backward else forward(both))
        rival = mamba(both, backward=backward)
        theirs = milliseconds(rival) if rival else None
        yield {
            "pass": "forward+backward" if backward else "forward",
            "batch": batch,
            "tokens": tokens,
            "ms": ours,
            "mamba_ms": theirs or "open",
            "times_mamba": round(theirs / ours, 2) if theirs else "open",
            "share_of_exp_limit": round(exp_limit_ms(batch * tokens) / ours, 2),
        }


def block_weights(dtype: torch.dtype) -> BlockWeights:
    """Return those of a Vim-Ti block."""
    generator = torch.Generator(DEVICE).manual_seed(2)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        weights = torch.randn(shape, device=DEVICE, generator=generator) / shape[-1] ** 0.5
        return weights.to(dtype)

    directions = tuple(
        DirectionWeights(
            taps=random(CHANNELS, TAPS),
            conv_bias=random(CHANNELS),
            x_proj=random(RANK + 2 * STATES, CHANNELS, dtype=dtype),
            dt_proj=random(CHANNELS, RANK, dtype=dtype),
            dt_bias=torch.linspace(-7, -2.25, CHANNELS, device=DEVICE),
            A=-torch.arange(1.0, STATES + 1, device=DEVICE).expand(CHANNELS, -1),
            D=torch.ones(CHANNELS, device=DEVICE),
            reverse=reverse,
            conv_reverse=reverse,
        )
        for reverse in (False, True)
    )
    return BlockWeights(
        norm_weight=torch.ones(WIDTH, device=DEVICE),
        norm_bias=None,
        eps=1e-5,
        in_proj=random(2 * CHANNELS, WIDTH, dtype=dtype),
        directions=directions,
        out_proj=random(WIDTH, CHANNELS, dtype=dtype),
        scale=0.5,
        gamma=None,
    )


Step = tuple[str, Callable[[], Sequence[Tensor]], Callable[[torch.dtype], Sequence[Tensor]]]


def steps(tokens: int, dtype: torch.dtype) -> Iterator[Step]:
    """Yield the steps of a block, each by its kernel and by plain PyTorch in a given dtype."""
    w = block_weights(dtype)
    generator = torch.Generator(DEVICE).manual_seed(3)
    residual = torch.randn(1, tokens, WIDTH, device=DEVICE, generator=generator)
    streams = torch.randn(1, tokens, 4, CHANNELS, device=DEVICE, generator=generator).to(dtype)
    x, y, y_reverse, z = streams.unbind(2)
    x, z = torch.cat([x, z], -1).chunk(2, -1)  # side by side, as they are projected
    y, y_reverse = y.contiguous(), y_reverse.contiguous()

    def as_is(values: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
        return [None if v is None else v.to(dtype) for v in values]

    normed: tuple[Any, ...] = (residual, w.norm_weight, w.norm_bias, w.in_proj)
    yield (
        "norm and projection",
        lambda: [operators.norm_project(*normed, eps=w.eps)],
        lambda dtype: [plain_steps.norm_project(*as_is(normed, dtype), w.eps)],
    )
    d = w.directions[1]
    convolved: tuple[Any, ...] = (x, None, d.taps, d.conv_bias, d.x_proj, d.dt_proj)
    yield (
        "convolution and projections",
        lambda: operators.conv_project(*convolved, reverse=d.conv_reverse),
        lambda dtype: plain_steps.conv_project(*as_is(convolved, dtype), d.conv_reverse),
    )
    gated: tuple[Any, ...] = (y, y_reverse, z, w.out_proj)
    out = torch.empty_like(residual)

    def gate() -> list[Tensor]:
        operators.gate_project(*gated, scale=w.scale, gamma=w.gamma, out=out, accumulate=False)
        return [out]

    yield (
        "gate and projection",
        gate,
        lambda dtype: [plain_steps.gate_project(*as_is(gated, dtype), w.scale, w.gamma)],
    )
    yield (
        "block",
        lambda: [fused_block(residual, w)],
        lambda dtype: [plain_block(residual, w, dtype)],
    )


def plain_block(residual: Tensor, w: BlockWeights, dtype: torch.dtype) -> Tensor:
    """Return `fused_block` by plain PyTorch, with the scan in Triton, or in float64 in PyTorch."""
    weights, total = w.in_products(dtype), None
    norm_weight = w.norm_weight.to(dtype)
    xz = plain_steps.norm_project(residual.to(dtype), norm_weight, None, weights.in_proj, w.eps)
    x, z = xz.chunk(2, -1)
    scan = torch_scan.selective_scan if dtype == torch.float64 else triton_scan
    for d in weights.directions:
        taps, bias = d.taps.to(dtype), d.conv_bias.to(dtype)
        u, dt, BC = plain_steps.conv_project(
            x, None, taps, bias, d.x_proj, d.dt_proj, d.conv_reverse
        )
        B, C = BC.chunk(2, -1)
        options: Row = {"dt_bias": d.dt_bias, "dt_softplus": True, "reverse": d.reverse}
        y, _ = scan(u, dt, d.A.to(u.dtype), B, C, d.D, **options)
        total = y if total is None else total + y
    assert total is not None
    return plain_steps.gate_project(total, None, z, weights.out_proj, w.scale, w.gamma)


def block() -> Iterator[Row]:
    tokens, dtype = 2**18, torch.bfloat16
    with torch.inference_mode():
        for name, work, plainly in steps(tokens, dtype):
            ours, theirs = milliseconds(work), milliseconds(lambda p=plainly: p(dtype))  # type: ignore[misc]
            yield {
                "step": name,
                "tokens": tokens,
                "ms": ours,
                "plain_ms": theirs,
                "times_plain": round(theirs / ours, 2),
            }


def length() -> Iterator[Row]:
    for power in range(14, 25):
        tokens = 2**power
        ms = milliseconds(forward(directions(1, tokens)))
        yield {"tokens": tokens, "ms": ms, "ns_per_token": round(ms * 1e6 / tokens, 2)}


def tune() -> Iterator[Row]:
    from gigavim.kernels.block import triton_plan as block_plan
    from gigavim.kernels.scan import triton_plan

    long, training = directions(1, 2**20), directions(1, 2**17)
    kernels = {
        "scan": (forward(long), [(c, t) for c in (32, 64) for t in (2, 4, 8)]),
        "summarise": (forward(long), [(c, t) for c in (32, 64) for t in (2, 4, 8)]),
        "backward": (forward_and_backward(training), [(32, t) for t in (1, 2, 4)]),
    }
    for name, (work, shapes) in kernels.items():
        times = {}
        for channels, tokens in shapes:
            launch = triton_plan.Launch(channels, tokens)
            triton_plan.TUNED[name] = launch
            times[launch] = milliseconds(work)
            yield {"kernel": name, **launch._asdict(), "ms": times[launch]}
        triton_plan.TUNED[name] = min(times, key=times.__getitem__)
    around = {
        "norm_project": [(64, 32, 128, 8, 3), (128, 32, 128, 8, 3), (128, 32, 64, 8, 3)],
        "conv_project": [(64, 32, 256, 4, 2), (64, 32, 256, 8, 2), (64, 16, 256, 4, 2)],
        "gate_project": [(64, 32, 128, 8, 2), (32, 32, 256, 8, 2), (64, 64, 256, 8, 2)],
    }
    with torch.inference_mode():
        for (name, launches), (_, step, _) in zip(
            around.items(), steps(2**18, torch.bfloat16), strict=False
        ):
            timed = {}
            for numbers in launches:
                choice = block_plan.Launch(*numbers)
                block_plan.TUNED[name, 2] = choice
                timed[choice] = milliseconds(step)
                yield {"kernel": name, **choice._asdict(), "ms": timed[choice]}
            block_plan.TUNED[name, 2] = min(timed, key=timed.__getitem__)
    best = {}
    for warps in (8, 12, 18, 24, 32):
        triton_plan.WARPS_PER_PROCESSOR = warps
        best[warps] = milliseconds(forward(long))
        yield {"warps_per_processor": warps, "ms": best[warps]}
    triton_plan.WARPS_PER_PROCESSOR = min(best, key=best.__getitem__)
    yield {
        "table": {k: v._asdict() for k, v in triton_plan.TUNED.items()},
        "warps_per_processor": triton_plan.WARPS_PER_PROCESSOR,
        "around": {name: block_plan.TUNED[name, 2]._asdict() for name in around},
    }


def models() -> Iterator[Row]:
    for side in (512, 768, 1024, 1248, 2048, 4096, 8192):
        images = torch.randn(1, 3, side, side, device=DEVICE)
        for name, model in contestants(side):
            row: Row = {"model": name, "side": side}
            if model is None:
                yield row | {"ms": "open"}
                continue
            model.to(DEVICE).eval()
            with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
                torch.cuda.reset_peak_memory_stats()
                start = torch.cuda.memory_allocated()
                try:
                    ms: float | str = milliseconds(lambda m=model, i=images: m(i))  # type: ignore[misc]
                except torch.cuda.OutOfMemoryError:
                    ms = "out of memory"
                peak = (torch.cuda.max_memory_allocated() - start) / 2**20
            yield row | {"ms": ms, "peak_mib": round(peak)}


def contestants(side: int) -> Iterator[tuple[str, nn.Module | None]]:
    yield "Vim-Ti", vim_tiny()
    for name, fused in (("DeiT-Ti plain", False), ("DeiT-Ti fused", True)):
        if importlib.util.find_spec("timm") is None:
            yield name, None
            continue
        model = importlib.import_module("timm").create_model("deit_tiny_patch16_224", img_size=side)
        for block in model.blocks:
            block.attn.fused_attn = fused
        yield name, model


if __name__ == "__main__":
    main()
