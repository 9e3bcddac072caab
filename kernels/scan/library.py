"""The C library: which build of scan.c and conv.c is loaded, and how their structures look here.

``hatch_build.py`` builds one library for each instruction set; the best one that this CPU runs is
loaded with ctypes, so that no build depends on a version of Python or PyTorch. As torch is imported
first, the library uses the OpenMP runtime, and so the threads, of PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

import torch
from torch import Tensor

TARGETS = {"AVX512": ("avx512", "avx2", "generic"), "AVX2": ("avx2", "generic")}
"""Builds to look for, best first, by what PyTorch finds that the CPU has."""


def unavailable() -> str | None:
    """Return why the C library cannot run here, or None where it can."""
    library, text = _load()
    return text if library is None else None


def library_name() -> str:
    """Return the instruction set of the library in use, or nothing without one."""
    library, text = _load()
    return "" if library is None else text


class View(ctypes.Structure):
    """Mirrors ``View`` in rows.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("half", ctypes.c_int64),
    )


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Scan(ctypes.Structure):
    """Mirrors ``Scan`` in scan.h."""

    _fields_ = (
        ("other", ctypes.c_void_p),
        *_fields(ctypes.c_int64, "sequences length channels states B_groups C_groups"),
        *_fields(ctypes.c_int64, "softplus reverse sharing blocks threads parts segments"),
        *_fields(ctypes.c_void_p, "offsets"),
        *_fields(View, "u dt B C z"),
        *_fields(ctypes.c_void_p, "A D dt_bias h"),
        *_fields(View, "y"),
        *_fields(ctypes.c_void_p, "h_last s checkpoints summaries"),
        *_fields(View, "dy"),
        *_fields(ctypes.c_void_p, "dh_last ds"),
        *_fields(View, "du ddt dz dB dC"),
        *_fields(ctypes.c_void_p, "dA dD dbias dh"),
    )


class Conv(ctypes.Structure):
    """Mirrors ``Conv`` in conv.c."""

    _fields_ = (
        *_fields(ctypes.c_int64, "sequences length channels taps reverse threads"),
        *_fields(ctypes.c_void_p, "offsets weight bias"),
        *_fields(View, "x halo y next"),
    )


class ConvBackward(ctypes.Structure):
    """Mirrors ``ConvBackward`` in conv.c."""

    _fields_ = (
        ("conv", Conv),
        *_fields(View, "dy dnext dx dhalo"),
        *_fields(ctypes.c_void_p, "dweight dbias"),
    )


def in_rows(tensor: Tensor) -> Tensor:
    """Return a tensor (b, l, ...) in a dtype that C reads rows of, float32 or bfloat16."""
    return tensor if tensor.dtype == torch.bfloat16 else tensor.float()


def dense_tokens(tensor: Tensor) -> Tensor:
    """Return a tensor (b, l, ...) whose values of one token lie side by side, copied if need be."""
    return tensor if tensor[:1, :1].is_contiguous() else tensor.contiguous()


def view(tensor: Tensor | None) -> View:
    """Return where a tensor (b, l, ...) of dense tokens lies."""
    if tensor is None:
        return View()
    batch, token = (tensor.stride(i) if tensor.shape[i] > 1 else 0 for i in (0, 1))
    return View(tensor.data_ptr(), batch, token, tensor.dtype == torch.bfloat16)


def pointer(tensor: Tensor | None) -> int | None:
    """Return where a contiguous tensor lies."""
    return None if tensor is None else tensor.data_ptr()


def run(name: str, call: Scan | Conv | ConvBackward) -> None:
    """Run ``scan_forward`` and the like."""
    if getattr(_library(), f"gigavim_{name}")(ctypes.byref(call)):
        raise MemoryError(f"no memory for {name}")


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the best library and its instruction set, or None and why there is none."""
    folder = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]")))
    digest = hashlib.sha256(sources).hexdigest()
    reason = "the C library is not built; install gcc or clang, then GigaVim again"
    for target in TARGETS.get(torch.backends.cpu.get_cpu_capability(), ("generic",)):
        path = folder / f"libgigavim_scan-{target}.so"
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            reason = f"the C library does not load: {error}"
            continue
        if _sources(library) == digest:
            return library, target
        reason = f"{path} is not built from the {folder / 'scan.c'} of today; install GigaVim again"
    return None, reason


def constant(name: str) -> int:
    """Return ``gigavim_scan_<name>`` of the library."""
    return _constant(_library(), name)


@functools.cache
def _constant(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int64.in_dll(library, f"gigavim_scan_{name}").value


def _library() -> ctypes.CDLL:
    library, text = _load()
    assert library is not None, text
    return library


def _sources(library: ctypes.CDLL) -> str:
    value = ctypes.c_char_p.in_dll(library, "gigavim_sources").value or b""
    return value.decode()
