"""Networks of any kind that make one feature of each tile: yours, or timm's.

To GigaVim a tile encoder is an `embed`: a patch as large as a tile becomes a token. What comes
after it is a model like any other, of no blocks where the features are what is wanted.

Weights are data; a TorchScript file is a program. PyTorch's own security policy wants it "treated
the same way as locally executable code from an unknown source" (pytorch/pytorch, SECURITY.md), and
such a program can write files, by ``torch.save`` and ``torch.from_file``. So it is run on demand
alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gigavim.architecture import VisionMambaConfig
from gigavim.checkpoint import Model, ModelSpec, TileEncoder, load_weights
from gigavim.encoder import TileEmbedding, VisionMamba
from gigavim.errors import ModelError

TIMM = "timm:"
"""What the name of a network of timm, with its published weights, begins with."""
AT_ONCE = 64
"""Tiles that a network sees together."""
_OF_TILES = ("tile", "bands", "scale", "mean", "std")
LARGEST = torch.finfo(torch.float16).max
"""Number that a store can hold."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a TOML file beside the weights says of them: ``encoder.toml`` of ``encoder.pt``.

    What it leaves out is as timm has it for the network; a TorchScript file needs `tile`, `mean`
    and `std`.
    """

    network: str | None = None
    """Name of the architecture in timm; None for TorchScript."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of ``timm.create_model``, besides the name."""
    tile: int | None = None
    """Side of the tiles that it takes, in pixels."""
    spacing: float | None = None
    """Size of their pixels, in `unit`."""
    unit: Literal["µm", "metre"] = "µm"
    mean: tuple[float, ...] | None = None
    """Per band, after `scale`."""
    std: tuple[float, ...] | None = None
    """Per band, after `scale`."""
    scale: float = 1 / 255
    """Pixel values are multiplied by this first."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    pool: Literal["none", "first", "mean"] = "none"
    """As of `TileEncoder`."""
    training_data: str = ""
    licence: str = ""

    @property
    def called(self) -> str:
        """The network with its arguments, as text."""
        given = [f"{name}={value!r}" for name, value in sorted(self.arguments.items())]
        return "" if self.network is None else f"{self.network}({', '.join(given)})"

    @classmethod
    def beside(cls, path: Path) -> Description:
        """Read the description of a file of weights; an empty one where there is none.

        Raises
        ------
        ModelError
            If it cannot be understood.
        """
        about = description_of(path)
        if not about.is_file():
            return cls()
        try:
            values: dict[str, Any] = tomllib.loads(about.read_text(encoding="utf-8"))
            values |= {n: tuple(values[n]) for n in ("mean", "std", "bands") if n in values}
            if values.get("pool", "none") not in ("none", "first", "mean"):
                raise ValueError(f"pool is none, first or mean, not {values['pool']}")
            return cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{about} does not describe an encoder ({error}); correct it"
            ) from error


class _Pooled(nn.Module):
    """A network, and how the feature of a tile is read out of what it makes."""

    def __init__(self, network: nn.Module, pool: str) -> None:
        super().__init__()
        self.network, self.pool = network, pool

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape (b, F), of normalised pixels, shape (b, band, T, T)."""
        parts = torch.split(images, AT_ONCE)
        made = torch.cat([self._read_out(self.network(part)) for part in parts])
        if not bool((made.abs() <= LARGEST).all()):
            raise ModelError(
                f"the tile encoder made a feature that is no number up to {LARGEST:.0f}, as stores "
                "hold them; check its mean and std, and those of its bands"
            )
        return made

    def _read_out(self, made: Tensor) -> Tensor:
        if self.pool == "first":
            return made[:, 0]
        if self.pool == "mean":
            return made.mean(1) if made.ndim == 3 else made.flatten(2).mean(2)
        return made


def load_tile_encoder(
    name: str | Path,
    device: torch.device | str = "cpu",
    *,
    tile: int | None = None,
    trust: bool = False,
) -> Model:
    """Load a network as a model without blocks, whose tokens are its features of tiles.

    Parameters
    ----------
    name
        ``timm:NAME``, or a file beside which a `Description` lies: weights of a network of timm,
        safetensors or a checkpoint of tensors alone; or TorchScript.
    tile
        Side of the tiles, in pixels, in place of the description's.
    trust
        Run TorchScript: it is a program, which can do what the user can.

    Raises
    ------
    ModelError
        If it cannot be read, is a program and not trusted, is not described, or does not take such
        tiles.
    """
    text = str(name)
    path = Path(text)
    if text.startswith(TIMM):
        about = Description(network=text.removeprefix(TIMM))
        network, about = _of_timm(about, None, text)
        sha256 = _digest(network)
    else:
        if not path.is_file():
            raise ModelError(f"{text}: no such file; name a file of weights, or timm:NAME")
        about = Description.beside(path)
        if is_torchscript(path):
            network = _program(path, trust=trust)
        else:
            network, about = _of_timm(about, path, text)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = dataclasses.replace(about, tile=tile or about.tile)
    missing = [n for n in ("tile", "mean", "std") if getattr(about, n) is None]
    if missing or about.tile is None or about.mean is None or about.std is None:
        raise ModelError(
            f"{text} does not say its {' and '.join(missing)}; write them in "
            f"{description_of(path).name} beside it, as in {missing[0]} = "
            f"{'224' if missing[0] == 'tile' else '[0.5, 0.5, 0.5]'}"
        )
    if not any(True for _ in network.parameters()):
        raise ModelError(f"{text} has no weights of its own; save it before torch.jit.freeze")
    network = _Pooled(network, about.pool).requires_grad_(False).eval().to(device, torch.float32)
    width = _width(network, about.tile, len(about.bands), device, text)
    config = VisionMambaConfig(
        image_size=about.tile, patch=about.tile, stride=about.tile, bands=len(about.bands),
        width=width, features=width, depth=0, classes=0, class_token="none", position="none",
        norm="none",
    )  # fmt: skip
    try:
        spec = ModelSpec(
            config, scale=about.scale, mean=about.mean, std=about.std, bands=about.bands,
            spacing=about.spacing, unit=about.unit if about.spacing else None, tile=about.tile,
            mode="tiles", tiles=TileEncoder(path.stem, sha256, about.pool, about.called),
            training_data=about.training_data, licence=about.licence,
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"{text}: {error}; correct {description_of(path).name}") from error
    encoder = VisionMamba(config).eval()
    assert isinstance(encoder.patch_embed, TileEmbedding)
    encoder.patch_embed.network = network
    return Model(encoder, spec, path, sha256)


def lend(tiles: Model, model: Model) -> None:
    """Put a tile encoder in front of a model that was trained on its features.

    Raises
    ------
    ModelError
        If it was trained on others.
    """
    wanted, found = model.spec, tiles.spec
    embedding, lent = model.encoder.patch_embed, tiles.encoder.patch_embed
    if wanted.tiles is None or not isinstance(embedding, TileEmbedding):
        raise ModelError(f"{model.path} reads pixels, not features of tiles; leave out --encoder")
    if found.tiles is None or not isinstance(lent, TileEmbedding):
        raise ValueError(f"{tiles.path} is no tile encoder")
    if wanted.tiles.sha256 != found.tiles.sha256:
        raise ModelError(
            f"{model.path} was trained on features of {wanted.tiles.name} "
            f"({wanted.tiles.sha256[:12]}), and {tiles.path} is another encoder "
            f"({found.tiles.sha256[:12]}); pass the one that it was trained on"
        )
    pairs = [(n, getattr(wanted, n), getattr(found, n)) for n in _OF_TILES]
    pairs += [(n, getattr(wanted.tiles, n), getattr(found.tiles, n)) for n in ("pool", "network")]
    for name, before, now in pairs:
        if before != now:
            raise ModelError(
                f"{model.path} was trained with {name} {before}, and {tiles.path} has {now}; "
                "describe it as it was"
            )
    embedding.network = lent.network


def description_of(path: Path) -> Path:
    """Return where the `Description` of a file of weights is looked for."""
    return path.parent / f"{path.stem}.toml"


def is_torchscript(path: Path) -> bool:
    """Tell a program from weights, by the list of what is in the file."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _program(path: Path, *, trust: bool) -> nn.Module:
    """Load TorchScript."""
    if not trust:
        raise ModelError(
            f"{path} was refused, nothing in it was run: it is TorchScript, a program that can do "
            "what you can; --trust runs it if you know who made it, safetensors need no trust"
        )
    with warnings.catch_warnings():
        # PyTorch 2.13 would rather have torch.export, whose files are programs as well.
        warnings.filterwarnings("ignore", ".*torch.jit.* is deprecated", DeprecationWarning)
        try:
            program: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            fault = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{path} is no readable TorchScript ({fault}); save it anew"
            ) from error
    return program


def _of_timm(about: Description, weights: Path | None, name: str) -> tuple[nn.Module, Description]:
    """Make a network of timm, with weights from a file or its published ones."""
    if about.network is None:
        raise ModelError(
            f'{name} does not say what it is the weights of; write network = "NAME", as timm '
            f"calls it, in {description_of(Path(name)).name} beside it"
        )
    published = weights is None
    given = {} if weights is None else load_weights(weights)
    try:
        import timm
    except (ModuleNotFoundError, RuntimeError) as error:
        # torchvision, which timm needs, fails in this way beside another build of PyTorch.
        raise ModelError(
            f"{name} needs timm, and it cannot be imported ({error}); pip install "
            "'gigavim[encoders]', with torch and torchvision from the same index"
        ) from error
    try:
        arguments = {"num_classes": 0, **about.arguments}
        network: nn.Module = timm.create_model(about.network, pretrained=published, **arguments)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        fault = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name}: timm makes no {about.network} ({fault}); check it") from error
    own: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if weights is not None:
        _take(network, given, own.get("classifier"), weights)
    return network, dataclasses.replace(
        about,
        tile=about.tile or own["input_size"][-1],
        mean=about.mean or tuple(own["mean"]),
        std=about.std or tuple(own["std"]),
    )


def _take(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    classifier: str | Sequence[str] | None,
    path: Path,
) -> None:
    """Put weights in a network; those of a classifier that it lacks are left out."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    heads = tuple(f"{name}." for name in names)
    expected = set(network.state_dict())
    kept = {n: w for n, w in weights.items() if n in expected or not n.startswith(heads or ("\0",))}
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        fault = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ModelError(f"{path} are not the weights of this network ({fault})") from error


def _width(network: nn.Module, tile: int, bands: int, device: torch.device | str, name: str) -> int:
    """Return F, by a tile of zeros."""
    wanted = "; it is to make a feature, (b, F), of each tile: say pool, or another tile"
    try:
        with torch.inference_mode():
            made = network(torch.zeros(1, bands, tile, tile, device=device))
    except (RuntimeError, AssertionError, IndexError, AttributeError, TypeError) as error:
        fault = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"{name} does not take tiles of {tile} px and {bands} bands ({fault}){wanted}"
        ) from error
    if made.ndim != 2 or len(made) != 1:
        raise ModelError(f"{name} makes {tuple(made.shape)} of a tile of {tile} px{wanted}")
    return int(made.shape[1])


def _digest(network: nn.Module) -> str:
    """Name weights that are in no file of ours."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
