"""Answers without a run: what an image is and what a run would take, what this machine can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from gigavim import __version__, models
from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig, source_options
from gigavim.errors import GigavimError, ModelError
from gigavim.kernels.scan import scan_backend
from gigavim.models import Listed, available, shipped, weights_path
from gigavim.pipelines.memory import MemoryPlan, plan_memory
from gigavim.pipelines.plan import Plan, make_plan, set_up
from gigavim.pipelines.run import pick_device
from gigavim.pipelines.suitable import MEANT_FOR
from gigavim.precision import product_precision
from gigavim.sources import open_source
from gigavim.streamed import rows_like

PACKAGES = (
    "torch", "triton", "numpy", "openslide-python", "tifffile", "imagecodecs", "rasterio", "zarr",
    "dask", "distributed", "scikit-image", "scikit-learn", "napari",
)  # fmt: skip


def describe(path: str, config: RunConfig, resources: Resources | None = None) -> dict[str, Any]:
    """Tell what an image is, and what a run would read.

    Where a run is not possible, ``run`` says why in place of figures.

    Raises
    ------
    SourceError
        If the image cannot be opened.
    """
    source = open_source(path, **source_options(config.as_dict()))
    finest, own = source.levels[0], source.spacing
    facts: dict[str, Any] = {
        "image": path,
        "kind": source.kind,
        "reader": source.reader,
        "size": {
            "width": finest.width,
            "height": finest.height,
            "megapixels": finest.width * finest.height / 1e6,
        },
        "spacing": own and {"x": own.x, "y": own.y, "unit": own.unit, "taken_from": own.origin},
        "crs": source.crs and _crs_name(source.crs),
        "bands": [band.name for band in source.bands],
        "dtype": str(source.dtype),
        "levels": [
            {"width": level.width, "height": level.height, "downsample": level.downsample_x}
            for level in source.levels
        ],
        "metadata": source.metadata,
    }
    started = time.perf_counter()
    resources = resources or Resources()
    try:
        plan = make_plan(set_up(path, config, pick_device(resources.device)))
        memory = plan_memory(plan, resources)
    except GigavimError as error:
        return facts | {"run": {"not_possible": str(error)}}
    return facts | {"run": _forecast(plan, resources, memory, time.perf_counter() - started)}


def checkup() -> dict[str, Any]:
    """Tell what is installed, which devices and kernels there are, what is missing and its fix."""
    import openslide
    import rasterio

    cpu = scan_backend("cpu", torch.float32)
    kernels = [_kernels("cpu")]
    devices = [
        {
            "name": "cpu",
            "what": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
            f"{torch.backends.cpu.get_cpu_capability()}",
            "memory_bytes": psutil.virtual_memory().total,
        }
    ]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        name = f"cuda:{index}"
        devices.append({"name": name, "what": found.name, "memory_bytes": found.total_memory})
        kernels.append(_kernels(name))
    return {
        "gigavim": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) or "not installed" for name in PACKAGES},
        "libraries": {
            "openslide": openslide.__library_version__,
            "gdal": rasterio.__gdal_version__,
        },
        "devices": devices,
        "kernels": kernels,
        "models": [item.name for item in available() if item.path],
        "missing": _missing(cpu.name),
    }


def describe_models(files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """List models: the shipped ones, files, and the published ones.

    Parameters
    ----------
    files
        Names, files and addresses; by default the model files in this folder, of which those that
        are no models say so.

    Raises
    ------
    ModelError
        If one of `files` is no model.
    """
    if files:
        return [_described(Listed(name, weights_path(name), "as asked")) for name in files]
    described = [_described(item) for item in available()]
    for path in sorted(Path().glob("*.safetensors")):
        item = Listed(str(path), path, "in this folder")
        try:
            described.append(_described(item))
        except ModelError as error:
            described.append({"name": item.name, "shipped": False, "about": str(error)})
    return described


def _described(item: Listed) -> dict[str, Any]:
    """Describe one of them; an architecture whose weights are not here by itself."""
    if item.path is None:
        with torch.device("meta"):
            encoder, spec = getattr(models, item.name)(), None
    else:
        model = load_model(item.path)
        encoder, spec = model.encoder, model.spec
    return {
        "name": item.name,
        "shipped": item.path is not None and item.path == shipped(item.name),
        "path": item.path and str(item.path),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "patch": encoder.config.patch,
        "about": item.note
        if spec is None or spec.tiles is None
        else f"{item.note}; reads features of {spec.tiles.name} ({spec.tiles.sha256[:12]})",
        "mode": spec.mode if spec else None,
        "bands": list(spec.bands) if spec else [],
        "spacing": spec.spacing if spec else None,
        "unit": spec.unit if spec else None,
        "classes": list(spec.classes.names) if spec and spec.classes else [],
        "metrics": dict(spec.metrics) if spec else {},
        "training_data": spec.training_data if spec else "",
        "licence": spec.licence if spec else "",
        "split": spec.split if spec else "",
    }


def _forecast(
    plan: Plan, resources: Resources, memory: MemoryPlan, planning_s: float
) -> dict[str, Any]:
    """Say what a run would read, and estimate time by reading and encoding one block."""
    setup, tokens = plan.setup, len(plan.sequence)
    encoder = setup.model.encoder
    block = max(plan.blocks, key=lambda block: len(block.cells))
    patches = plan.reader(block)
    with torch.inference_mode():
        started = time.perf_counter()
        embedded = encoder.embed(torch.from_numpy(patches.pixels).to(rows_like(encoder).device))
        embed_s = time.perf_counter() - started
        length = plan.tile**2 if plan.tile else len(embedded)
        encoder.mix(
            embedded.view(-1, length, encoder.config.width),
            index=torch.from_numpy(block.cells[:length]),
            grid=(setup.grid.rows, setup.grid.columns),
        )
        mix_s = time.perf_counter() - started - embed_s
    share = plan.megapixels / patches.megapixels
    read_s = share * (patches.read_s + patches.decode_s) / resources.readers
    per_token = plan.tokens / len(embedded)
    beside, after = (embed_s + mix_s, 0.0) if plan.tile else (embed_s, mix_s)

    return {
        "model": setup.model.path.stem,
        "default_for": None
        if setup.config.model or setup.config.encoder
        else MEANT_FOR[setup.model.path.stem],
        "mode": setup.mode,
        "warnings": list(plan.warnings),
        "spacing": list(setup.spacing),
        "unit": setup.own.unit,
        "level_read": setup.plane.level,
        "patches": tokens,
        "foreground_share": tokens / (setup.grid.rows * setup.grid.columns),
        "tokens": plan.tokens,
        "pixels": setup.grid.rows * setup.grid.columns * setup.grid.stride**2,
        "megapixels": plan.megapixels,
        "memory_bytes": memory.expected,
        "memory_limit_bytes": memory.limit,
        "device_memory_bytes": memory.device_expected,
        "device_memory_limit_bytes": memory.device_limit,
        "chunk": memory.chunk,
        "residual_on": memory.residual_on,
        "scratch_bytes": memory.scratch,
        "store_bytes": _store_bytes(plan),
        "seconds": planning_s + max(read_s, per_token * beside) + per_token * after,
    }


def _store_bytes(plan: Plan) -> int:
    """Return what the store will take at most: maps are compressed, and mostly much smaller."""
    setup = plan.setup
    classes = setup.model.spec.classes
    channels = 0 if classes is None else len(classes.names)
    # Features are float16, coords and grid_index int32, probabilities float16 and a byte in maps.
    row = 2 * setup.model.encoder.config.width + 17 + 2 * channels
    cells = setup.grid.rows * setup.grid.columns
    size = len(plan.sequence) * row + 4 * cells * (3 + channels) // 3
    if "nuclei" in setup.heads:
        size += 2 * cells * setup.grid.patch**2 * 4 // 3
    return size


def _kernels(device: str) -> dict[str, Any]:
    """Tell which scan a device runs and why, and whether it has fast bfloat16 products."""
    scan = scan_backend(device, torch.float32)
    products = product_precision(device, "bfloat16")
    return {
        "device": device,
        "scan": scan.name,
        "reason": scan.reason,
        "bfloat16": products.precision == "bfloat16",
    }


def _missing(cpu_scan: str) -> list[dict[str, str]]:
    """Name what would help and is not there, each with its fix."""
    missing = []
    if cpu_scan != "c":
        missing.append(
            {
                "what": "the fast scan for CPUs",
                "fix": "install a C compiler (gcc or clang), then pip install --force-reinstall "
                "--no-deps gigavim",
            }
        )
    if not _version("napari"):
        missing.append({"what": "the viewer", "fix": "pip install 'gigavim[napari]'"})
    if sys.platform == "linux" and torch.cuda.is_available() and not _version("triton"):
        missing.append({"what": "GPU kernels", "fix": "pip install triton"})
    if not [item for item in available() if item.path]:
        missing.append({"what": "models", "fix": "install gigavim again, its weights are gone"})
    return missing


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _crs_name(wkt: str) -> str:
    import rasterio.crs

    crs = rasterio.crs.CRS.from_wkt(wkt)
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_string()
