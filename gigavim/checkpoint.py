"""Weights and what is needed to run them, to and from one file.

A model is one safetensors file whose metadata holds a `ModelSpec` as JSON under the key
``gigavim``. Weights published elsewhere, safetensors or ``.pth`` without such metadata, are
recognised by the shapes of their tensors. A ``.pth`` is a pickle; it is read by PyTorch's
restricted unpickler alone, which builds tensors and plain containers and runs nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gigavim import __version__
from gigavim.bag import BagConfig, GatedAttention
from gigavim.dense import Decoder, DecoderConfig
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError
from gigavim.head import ClassTable
from gigavim.models import weights_path
from gigavim.nuclei import NucleiConfig

KEY = "gigavim"
"""Of the metadata of a safetensors file."""
DECODER = "decoder."
"""What the names of a decoder's weights begin with."""
LENT = "patch_embed.network."
"""What the names of weights begin with that are a tile encoder's and stay in its own file."""
BAG = "bag."
"""What the names of the weights of a head of whole images begin with."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class TileEncoder:
    """The network that makes features of tiles, which a model takes in place of their pixels."""

    name: str = field(compare=False)
    """For people: the stem of its file, or its name in timm."""
    sha256: str
    """Of its file, in hexadecimal; of the names and values of its weights where it has none."""
    pool: Literal["none", "first", "mean"] = "none"
    """How a tile's feature is read out: the network does it, (b, F); it is the ``first`` of its
    tokens, (b, n, F); or their ``mean``, also that of a map, (b, F, h, w)."""
    network: str = ""
    """What timm calls it, and with which arguments it was made; empty for a program."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that running a model takes besides its weights."""

    architecture: VisionMambaConfig
    scale: float = 1 / 255
    """Pixel values are multiplied by this first."""
    white: float | None = None
    """Reflectance that was 255 in training, and more was 255 as well; None where bytes were not
    made of reflectance in a way that is known."""
    normalisation: Literal["fixed", "image"] = "fixed"
    """Whether `mean` and `std` are subtracted and divided by, or each image's own."""
    mean: tuple[float, ...] = ()
    """Per band, after `scale`; empty for ``image``."""
    std: tuple[float, ...] = ()
    """Per band, after `scale`; empty for ``image``."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    wavelengths_nm: tuple[float | None, ...] = ()
    """Centre of each band, None for one that has none; empty where names are all that is known."""
    partial_bands: bool = False
    """Whether it was trained to do with some of its bands, 0 after normalisation in the others."""
    spacing: float | None = None
    """Size of a pixel that it was trained at, in `unit`; None where any may do."""
    unit: str | None = None
    """``µm`` or ``metre``."""
    tile: int = 224
    """Side of the images that it was trained on, in pixels."""
    mode: Literal["whole", "tiles"] | None = None
    """How images are best read with it, by measurement; None where that is not known."""
    classes: ClassTable | None = None
    """Of its classifier; None where their names are not known."""
    decoder: DecoderConfig | None = None
    """What maps every pixel; None where the model does not."""
    nuclei: NucleiConfig | None = None
    """How nuclei are found in what the decoder makes; None where it maps something else."""
    bag: BagConfig | None = None
    """What gives a whole image its class, in place of the encoder's classifier; None without it."""
    tiles: TileEncoder | None = None
    """What turns a patch, a tile then, into what is projected; None where its pixels are."""
    stain: tuple[tuple[float, float], ...] = ()
    """Per band, between what its share in the stain lay in training (`stain_shares`); or empty."""
    training_data: str = ""
    licence: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """On held-out data."""
    split: str = ""
    """SHA-256 of the table that says which tiles it was trained on; empty where there is none."""
    code_version: str = __version__
    """Of the GigaVim that wrote it."""

    def __post_init__(self) -> None:
        bands = self.architecture.bands
        per_band = (
            (self.bands, self.mean, self.std) if self.normalisation == "fixed" else (self.bands,)
        )
        if any(len(values) != bands for values in per_band):
            raise ValueError(
                f"a model of {bands} bands needs {bands} names and, unless normalised per image, "
                f"means and stds, not {len(self.bands)}, {len(self.mean)} and {len(self.std)}"
            )
        if len(self.wavelengths_nm) not in (0, bands):
            raise ValueError(
                f"{bands} bands have as many wavelengths, not {len(self.wavelengths_nm)}"
            )
        classes = self.architecture.classes if self.bag is None else self.bag.classes
        if self.classes is not None and len(self.classes.names) != classes:
            raise ValueError(
                f"a classifier of {classes} classes needs as many names, "
                f"not {len(self.classes.names)}"
            )

    def to_json(self) -> str:
        """Return it as a JSON object with the names of the fields."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Return what `to_json` wrote.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is something else.
        """
        values: dict[str, Any] = json.loads(text)
        values["architecture"] = VisionMambaConfig(**values["architecture"])
        for name in ("mean", "std", "bands"):
            values[name] = tuple(values[name])
        if values["classes"]:
            colours = tuple((r, g, b) for r, g, b in values["classes"]["colours"])
            values["classes"] = ClassTable(tuple(values["classes"]["names"]), colours)
        # Models of before had no decoders.
        if values.get("decoder"):
            decoder = {name: tuple(value) for name, value in values["decoder"].items()}
            values["decoder"] = DecoderConfig(**decoder)
        values["wavelengths_nm"] = tuple(values.get("wavelengths_nm", ()))
        values["stain"] = tuple((low, high) for low, high in values.get("stain", ()))
        if values.get("nuclei"):
            values["nuclei"] = NucleiConfig(**values["nuclei"])
        if values.get("bag"):
            values["bag"] = BagConfig(**values["bag"])
        if values.get("tiles"):
            values["tiles"] = TileEncoder(**values["tiles"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Model:
    """An encoder ready to run."""

    encoder: VisionMamba
    """On its device, in evaluation mode, float32."""
    spec: ModelSpec
    path: Path
    """The file it was read from."""
    sha256: str
    """Of that file, in hexadecimal."""
    decoder: Decoder | None = None
    """Like `encoder`; None where the model maps no pixels."""
    bag: GatedAttention | None = None
    """Like `encoder`; None where the model does not classify by attention."""


def load_model(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    *,
    architecture: VisionMambaConfig | None = None,
    average: bool = False,
) -> Model:
    """Load a model that ships with GigaVim, a model file, or published Vim weights.

    Parameters
    ----------
    architecture
        For weights that do not say theirs; by default inferred by `infer_config`. Their pixels are
        then normalised by the mean and standard deviation of ImageNet.
    average
        Take the moving average of the weights, where a training checkpoint holds one.

    Raises
    ------
    ModelError
        If there is no such model, or the file cannot be read, is not safe to read, or does not fit.
    """
    path = weights_path(name_or_path)
    weights = load_weights(path, average=average)
    spec = read_spec(path)
    if spec is None:
        try:
            config = architecture or infer_config(weights)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        if config.bands != 3:
            raise ModelError(
                f"{path} takes {config.bands} bands and does not say how to normalise them; "
                "save it once with gigavim.checkpoint.save_model and a ModelSpec"
            )
        spec = ModelSpec(config, mean=IMAGENET_MEAN, std=IMAGENET_STD, tile=config.image_size)
    with torch.device("meta"):
        encoder = VisionMamba(spec.architecture)
        decoder = Decoder(spec.architecture, spec.decoder) if spec.decoder else None
        bag = GatedAttention(spec.architecture.width, spec.bag) if spec.bag else None
    parts = _parts(encoder, decoder, bag)
    _check_fit(parts, weights, path)
    for prefix, part in parts.items():
        own = {name: weights[prefix + name] for name in part.state_dict()}
        for name, tensor in own.items():
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{path}: {prefix}{name} is not finite; get the weights again")
        part.load_state_dict(own, assign=True)
        part.requires_grad_(False).eval().to(device=device, dtype=torch.float32)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Model(encoder, spec, path, sha256, decoder, bag)


def save_model(
    path: str | Path,
    encoder: VisionMamba,
    spec: ModelSpec,
    dtype: torch.dtype = torch.float32,
    *,
    decoder: Decoder | None = None,
    bag: GatedAttention | None = None,
) -> None:
    """Write an encoder, what may come after it, and their specification to one safetensors file.

    Parameters
    ----------
    dtype
        Of the stored weights; float16 halves the file. They are float32 once loaded.

    Raises
    ------
    ValueError
        If `spec` describes another architecture, decoder or bag.
    """
    if spec.architecture != encoder.config:
        raise ValueError("the specification describes another architecture than the encoder has")
    if spec.decoder != (decoder.config if decoder else None):
        raise ValueError("the specification describes another decoder than there is")
    if spec.bag != (bag.config if bag else None):
        raise ValueError("the specification describes another head of whole images than there is")
    weights = {
        prefix + name: _stored(tensor, dtype)
        for prefix, part in _parts(encoder, decoder, bag).items()
        for name, tensor in part.state_dict().items()
        if not name.startswith(LENT)
    }
    safetensors.torch.save_file(weights, path, {KEY: spec.to_json()})


def _parts(
    encoder: VisionMamba, decoder: Decoder | None, bag: GatedAttention | None
) -> dict[str, nn.Module]:
    """Return the modules of a model by what the names of their weights begin with."""
    parts = {"": encoder, DECODER: decoder, BAG: bag}
    return {prefix: part for prefix, part in parts.items() if part is not None}


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights as they are stored; counts stay whole numbers."""
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()


def load_weights(path: str | Path, *, average: bool = False) -> dict[str, Tensor]:
    """Read the weights in a safetensors file or a PyTorch checkpoint, by name, on the CPU.

    Of a training checkpoint the weights alone are returned, of one written by several processes
    without the prefix ``module.``.

    Parameters
    ----------
    average
        Take the moving average of the weights (``model_ema``) of a training checkpoint.

    Raises
    ------
    ModelError
        If the file cannot be read, holds no weights, or is a pickle that wants to run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"{path} is not a readable safetensors file ({error}); get it again"
            ) from error
    content = _load_pickle(path)
    name = "model_ema" if average else "model"
    if isinstance(content, dict) and (average or "model" in content):
        if name not in content:
            raise ModelError(f"{path} holds no moving average of the weights; load it without")
        content = content[name]
    if (
        not isinstance(content, dict)
        or not content
        or not all(map(torch.is_tensor, content.values()))
    ):
        raise ModelError(f"{path} holds no weights: expected tensors by name, alone or as `model`")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _load_pickle(path: Path) -> object:
    try:
        # Published checkpoints hold the options of their training; a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # A pickle too new to be read raises as well, with a message that is ours.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        reason = str(error).partition("Please file an issue")[0].split("\n")
        wanted = next(
            (line.strip(" .") for line in reason if "GLOBAL" in line),
            "it is not a pickle of tensors",
        )
        raise ModelError(
            f"{path} was refused, nothing in it was run: {wanted}; ask its author for safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError) as error:
        # What the unpickler makes of a file that is no pickle at all depends on its first bytes.
        fault = str(error).splitlines()[0].partition(". ")[0] if str(error) else "it ends early"
        raise ModelError(f"{path} is not a readable checkpoint ({fault}); get it again") from error


def read_spec(path: Path) -> ModelSpec | None:
    """Return what the metadata of a model file says; None where the file has none of ours.

    Raises
    ------
    ModelError
        If it cannot be understood.
    """
    if path.suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if KEY not in metadata:
        return None
    try:
        return ModelSpec.from_json(metadata[KEY])
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path}: its description cannot be understood ({error}); "
            "update GigaVim, in case a newer one wrote it"
        ) from error


def infer_config(weights: Mapping[str, Tensor]) -> VisionMambaConfig:
    """Recover the architecture from names and shapes.

    Shapes do not tell everything. A class token is taken to sit in the middle and the directions to
    be halved, as in all published weights with a class token, and the training images to be 224 px
    where the number of positions allows it.

    Raises
    ------
    ModelError
        If these are not the weights of a Vim.
    """
    try:
        patch_weight = weights["patch_embed.proj.weight"]
        mixer = {
            name.removeprefix("layers.0.mixer."): tensor.shape
            for name, tensor in weights.items()
            if name.startswith("layers.0.mixer.")
        }
        width, bands, patch, _ = patch_weight.shape
        inner, state = mixer["A_log"]
        taps, rank = mixer["conv1d.weight"][-1], mixer["dt_proj.weight"][-1]
    except ValueError as error:
        raise ModelError(
            "patch_embed.proj.weight or layers.0.mixer.A_log has not the shape of a Vision Mamba's "
            f"({error}); other architectures cannot be run"
        ) from error
    except KeyError as error:
        raise ModelError(
            f"these are not the weights of a Vision Mamba: there is no {error}; "
            "other architectures cannot be run"
        ) from error
    depth = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    head = weights.get("head.weight")

    class_token: Literal["middle", "double", "none"] = "none"
    if "cls_token" in weights:
        class_token = "middle"
    elif "cls_token_head" in weights:
        class_token = "double"
    directions: Literal["v2", "v1", "forward"] = "forward"
    if "conv1d_b.weight" in mixer:
        directions = "v2"
    elif "A_b_log" in mixer:
        directions = "v1"
    rotary = "rope.freqs_cos" in weights
    image_size, stride = 224, patch
    if "pos_embed" in weights:
        class_rows = {"none": 0, "middle": 1, "double": 2}[class_token]
        image_size, stride = _training_size(weights["pos_embed"].shape[1] - class_rows, patch)
    return VisionMambaConfig(
        image_size=image_size,
        patch=patch,
        stride=stride,
        bands=bands,
        width=width,
        depth=depth,
        state=state,
        expand=inner // width,
        conv=taps,
        dt_rank=rank if rank != math.ceil(width / 16) else None,
        classes=len(head) if head is not None else 0,
        class_token=class_token,
        position="learned" if "pos_embed" in weights else "none",
        # The only published weights with rotary positions rotate both and do not halve.
        rope="tokens and residual" if rotary else "none",
        directions=directions,
        halve=directions == "v2" and not rotary,
        norm="layer" if "norm_f.bias" in weights else "rms",
        layer_scale=1.0 if "gamma" in mixer else None,
    )


def _training_size(positions: int, patch: int) -> tuple[int, int]:
    """Return the size of the training images and the stride that give so many positions."""
    side = math.isqrt(positions)
    if side * side != positions:
        raise ModelError(
            f"pos_embed has {positions} positions, not those of a square image; "
            "pass the architecture that it was trained with"
        )
    for stride in (patch, patch // 2, patch // 4):
        if stride and (224 - patch) // stride + 1 == side:
            return 224, stride
    return side * patch, patch


def _check_fit(parts: Mapping[str, nn.Module], weights: Mapping[str, Tensor], path: Path) -> None:
    expected = {
        prefix + name: tuple(tensor.shape)
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"{path} lacks {name} {shape}; is it complete, and a Vision Mamba?")
        if tuple(weights[name].shape) != shape:
            raise ModelError(
                f"{path}: {name} is {tuple(weights[name].shape)}, but the architecture has "
                f"{shape}; pass the architecture that it was trained with"
            )
    unexpected = sorted(set(weights) - set(expected))
    if unexpected:
        raise ModelError(
            f"{path} holds {len(unexpected)} tensors that the architecture has no place for, as "
            f"{unexpected[0]}; pass the architecture that it was trained with"
        )
