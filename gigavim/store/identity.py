"""Whether two runs are the same run: what was read, and with which configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_SAMPLE_BYTES = 1 << 20
_SAMPLED_FILES = 16


def fingerprint(path: str) -> dict[str, Any]:
    """Identify a source by its content, in the time that a few megabytes take to read.

    A file counts with its size and its first, middle and last megabyte; a folder with the names and
    sizes of its files and samples of some of them. Copying or touching changes nothing. A source
    that is no local file is known by its name alone.

    Returns
    -------
    identity
        ``size`` in bytes (None where not local) and ``fingerprint``, a hex digest.
    """
    digest = hashlib.sha256()
    files = list(_files(Path(path)))
    for name, _, size in files:
        digest.update(f"{name}\0{size}\0".encode())
    for _, file, size in files[:: max(1, len(files) // _SAMPLED_FILES)]:
        with file.open("rb") as stream:
            for start in sorted({0, size // 2, max(0, size - _SAMPLE_BYTES)}):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    if not files:
        digest.update(path.encode())
    return {
        "size": sum(size for *_, size in files) if files else None,
        "fingerprint": digest.hexdigest()[:32],
    }


def last_changes(path: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of the last change of every file of a source."""
    return [(name, size, file.stat().st_mtime_ns) for name, file, size in _files(Path(path))]


def _files(path: Path) -> Iterator[tuple[str, Path, int]]:
    """Yield name, path and size of every file of a source, in a fixed order."""
    if path.is_file():
        yield "", path, path.stat().st_size
    # An MRXS slide is a small file beside a folder of the same name that holds its pixels.
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    if folder.is_dir():
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file, file.stat().st_size


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name what keeps the run in ``found`` from being the run in ``wanted``.

    Configuration, model and the content of the source count; where the source lies does not.

    >>> differences({"configuration": {"spacing": 2}}, {"configuration": {"spacing": 1}})
    ['spacing 2, now 1']
    """
    before, after = _identity(found), _identity(wanted)
    return [
        f"{key} {_short(before.get(key))}, now {_short(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _identity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what makes a run itself, in the types that JSON keeps."""
    source = attributes.get("source", {})
    flat = {
        **_flat(attributes.get("configuration", {}), ""),
        **_flat(attributes.get("model", {}), "model "),
        **{f"image {key}": source.get(key) for key in ("size", "fingerprint")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(flat))
    return plain


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Bring nested settings to one level."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key} ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: object) -> str:
    """Render a value so that a few fit in one line."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
