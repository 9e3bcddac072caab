"""A probe and the model whose features it was fitted on, as one model file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from gigavim import hub
from gigavim.checkpoint import Model, load_model, save_model
from gigavim.errors import ModelError
from gigavim.models import PUBLISHED, shipped
from gigavim.probe import Probe
from gigavim.store import ResultStore
from gigavim.store.disk import writing


def model_of(store: ResultStore, path: str | Path | None = None) -> Model:
    """Load the model that made a store.

    Parameters
    ----------
    path
        Its file; by default looked for among the shipped and the downloaded ones, where the run
        found it, and beside the store.

    Raises
    ------
    ModelError
        If it is not found, or ``path`` is another one.
    """
    identity = store.attributes["model"]
    name, sha256 = str(identity["id"]), str(identity["weights_sha256"])
    for candidate in _candidates(store, name) if path is None else [Path(path)]:
        if candidate.is_file():
            with candidate.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == sha256:
                return load_model(candidate)
    if path is not None:
        raise ModelError(
            f"{path} is not the model that made {store.path}: that is {name}, with other weights "
            f"(SHA-256 {sha256[:12]}...); choose its file"
        )
    raise ModelError(
        f"{store.path} was made by the model {name} (SHA-256 {sha256[:12]}...), which is not at "
        "hand; choose its file"
    )


def save_probe(path: Path, probe: Probe, store: ResultStore, model: Model) -> None:
    """Write a model file that is a model with a probe for its classifier.

    ``gigavim run --model`` takes it; with the options of the store's run, the class map of the same
    image is that of `Probe.map`.

    Parameters
    ----------
    store
        On whose features the probe was fitted.
    model
        That made them, of `model_of`; it has the probe afterwards.

    Raises
    ------
    ModelError
        If the model could give no map in a run.
    StoreError
        If the file cannot be written.
    """
    config = store.attributes["configuration"]
    encoder, spec = model.encoder, model.spec
    if config["mode"] == "whole" and (encoder.config.class_token, encoder.config.pool) != (
        "none",
        "mean",
    ):
        raise ModelError(
            f"{model.path} classifies images by a class token, not patch by patch, and would give "
            "no map of a whole image; run it with --mode tiles, and teach on that"
        )
    classes, width = probe.weight.shape
    head = torch.nn.Linear(width, classes)
    head.load_state_dict(
        {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
    )
    architecture = dataclasses.replace(encoder.config, classes=classes)
    encoder.head, encoder.config = head, architecture
    spacing, unit = _spacing(store, model)
    accuracy = {} if probe.accuracy is None else {"cross-validated accuracy": probe.accuracy}
    described = dataclasses.replace(
        spec,
        architecture=architecture,
        spacing=spacing,
        unit=unit,
        mode=config["mode"],
        classes=probe.classes,
        decoder=None,
        nuclei=None,
        bag=None,
        metrics=accuracy,
        split="",
        training_data=_training_data(probe, store, spec.training_data),
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, encoder, described)


def options_of(store: ResultStore) -> str:
    """Return the options with which a run reads an image as that of a store was read.

    Those that a saved probe has in itself, model, mode and mostly the spacing, are left out.
    """
    config, spacing = store.attributes["configuration"], store.attributes["spacing"]
    options = {
        # By itself a run does not read finer than the image is.
        "--spacing": config["spacing"]
        if (config["spacing"] or 9e9) < min(spacing["level0"])
        else None,
        "--source-spacing": (config["source_spacing"] or [None])[0],
        "--bands": ",".join(config["bands"] or ()),
        "--order": None if config["order"] in ("raster", "cross") else config["order"],
        "--precision": None if config["precision"] == "float32" else config["precision"],
        "--mask": "FILE" if config["mask"] else None,
    }
    words = [f"{name} {value}" for name, value in options.items() if value]
    return " ".join([*words, *["--no-mask"] * config["read_all"]])


def _candidates(store: ResultStore, name: str) -> Iterator[Path]:
    """Yield files that may be the model of a store."""
    ships = shipped(name)
    if ships is not None:
        yield ships
    command = re.search(r"(?:--model|-m)[ =](\S+)", store.attributes.get("command", ""))
    if command is not None:
        yield Path(command[1])
    for folder in (store.path.parent, Path(store.attributes["source"]["uri"]).parent):
        yield folder / f"{name}.safetensors"
        yield folder / f"{name}.pth"
    for address in PUBLISHED.values():
        cached = hub.cached(address) if Path(address).stem == name else None
        if cached is not None:
            yield cached


def _spacing(store: ResultStore, model: Model) -> tuple[float | None, str | None]:
    """Return the spacing at which a run with the model reads the store's image as it was read."""
    own = store.attributes["spacing"]
    if own["requested"] is not None:
        return own["requested"], own["unit"]
    if model.spec.spacing is not None and model.spec.unit == own["unit"]:
        return model.spec.spacing, model.spec.unit
    y, x = own["level0"]
    return (y, own["unit"]) if y == x and own["unit"] in ("µm", "metre") else (None, None)


def _training_data(probe: Probe, store: ResultStore, before: str) -> str:
    """Say what a probe learned from."""
    image = Path(store.attributes["source"]["uri"]).name
    mode = store.attributes["configuration"]["mode"]
    unit = "tiles" if mode == "tiles" else "patches"
    learned = ", ".join(
        f"{name}: {count} {unit} under {shapes} shapes"
        for name, count, shapes in zip(probe.classes.names, probe.counts, probe.shapes, strict=True)
    )
    encoder = f"; encoder: {before}" if before else ""
    return f"linear probe on annotations of {image} ({learned}){encoder}"
