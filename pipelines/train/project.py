"""What is trained, on what, and how: a TOML file, or the defaults."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gigavim.encoder import VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.pipelines.train.augment import Augmentation


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training with its own optimiser; the next one begins with its best weights."""

    epochs: int = 50
    batch: int = 64
    learning_rate: float = 1e-3
    """Reached after the warm-up, from there to 0 by a cosine."""
    warm_up: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.05
    average: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and kept."""
    smoothing: float = 0.1
    """Of labels."""
    class_weights: bool = False
    """Whether rare classes weigh more, in inverse proportion to their tiles."""
    patience: int = 20
    """Epochs without a better validation after which it stops."""
    stride: int | None = None
    """From one patch to the next, in pixels, if other than the model's."""
    mosaic: int = 1
    """Tiles to a side of the squares that are learned from, patch by patch, in turns with tiles; 1:
    tiles alone, each as a whole."""
    mosaic_every: int = 2
    """Of so many batches one is of mosaics."""
    scenes: bool = False
    """Whether mosaics are laid out as scenes are, in place of squares of any tile beside any: of as
    many tiles, but wide, and in part by class."""
    augmentation: Augmentation | None = None
    """In place of the project's."""


@dataclass(frozen=True, slots=True)
class Project:
    """Everything that a training run follows from, besides the pixels."""

    data: str = ""
    """Folder, archive or table of tiles or images, relative to the project file; without labels a
    table of images in the folder that is given (`plain_images`)."""
    images: tuple[Mapping[str, str], ...] = ()
    """``file``, ``labels``, perhaps ``group`` and ``split`` of images with annotations, in place of
    a table; relative to the project file too."""
    task: Literal["classes", "nuclei", "bags"] = "classes"
    """Tiles have classes (`read_tiles`), or places in images, where these come with annotations;
    images have nuclei (`read_nuclei`); images of any size have one label each (`bags`)."""
    objective: Literal["hidden", "views"] = "hidden"
    """What is learned without labels: to predict hidden patches, or to know places again."""
    window: int = 32
    """Patches to a side of the squares that are learned from in images larger than tiles."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Number of each class in label rasters; by default every number is a class."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `VisionMambaConfig` that are not `SMALL`'s."""
    phases: tuple[Phase, ...] = (Phase(),)
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    bands: tuple[str, ...] = ()
    """Names; by default red, green and blue where there are three."""
    spacing: float | None = None
    """Size of the tiles' pixels, in `unit`."""
    source_spacing: float | None = None
    """Size of the pixels of slides, scenes and images that do not say it themselves."""
    mode: Literal["whole", "tiles"] = "tiles"
    """How images are read with a classifier of tiles unless one says otherwise: as it was trained,
    or ``whole`` where mosaics taught it to name patches and `benchmarks/mosaic.py` prefers it."""
    unit: Literal["µm", "metre"] | None = None
    white: float | None = None
    """Reflectance that the bytes of tiles hold as 255, and more as well, where that is known."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of classes, as ``#rrggbb``."""
    training_data: str = ""
    """For the model file: what the tiles are and under which licence."""
    licence: str = ""
    """Of the model."""

    def augmentation_in(self, phase: Phase) -> Augmentation:
        """Return what is done to training images in a phase."""
        return phase.augmentation or self.augmentation


RECIPES = Path(__file__).parent / "recipes"
"""The projects of the models that ship."""
SMALL: Mapping[str, Any] = {
    "patch": 8, "stride": 8, "width": 128, "depth": 8, "state": 8,
    "class_token": "none", "position": "none",
}  # fmt: skip
"""A Vim for tiles on a CPU. Its vector is the mean of its features, so that what its head says of
an image is the mean of what it says of the patches, whatever their number."""


def project_of(what: str | Path) -> Project:
    """Read a project file, or one of the `RECIPES` by its name; else it is a data set.

    Raises
    ------
    GigavimError
        As `read_project`.
    """
    is_project = Path(what).suffix.lower() == ".toml" or _is_recipe(what)
    return read_project(what) if is_project else Project(data=str(what))


def read_project(what: str | Path) -> Project:
    """Read a project file, or one of the `RECIPES` by its name.

    Raises
    ------
    GigavimError
        If it is no project, cannot be read, or says something that means nothing here.
    """
    path = RECIPES / f"{what}.toml" if _is_recipe(what) else Path(what)
    if path.suffix.lower() != ".toml":
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise GigavimError(f"{what} is no project; name a TOML file, or one of {known}")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GigavimError(f"{path} is no readable TOML file ({error}); correct it") from error
    try:
        if "data" in values:
            values["data"] = str(path.parent / values["data"])
        if "images" in values:
            values["data"] = str(path.parent)
            values["images"] = tuple(values["images"])
        if "phases" in values:
            values["phases"] = tuple(Phase(**_with_augmentation(p)) for p in values["phases"])
        values = _with_augmentation(values)
        if "bands" in values:
            values["bands"] = tuple(values["bands"])
        VisionMambaConfig(**values.get("model", {}))
        return Project(**values)
    except (TypeError, ValueError) as error:
        raise GigavimError(f"{path}: {error}; correct it") from error


def _with_augmentation(values: dict[str, Any]) -> dict[str, Any]:
    if "augmentation" not in values:
        return values
    chosen = dict(values["augmentation"])
    if "haze" in chosen:
        chosen["haze"] = tuple(chosen["haze"])
    return {**values, "augmentation": Augmentation(**chosen)}


def _is_recipe(what: str | Path) -> bool:
    return not Path(what).exists() and (RECIPES / f"{what}.toml").is_file()


def architecture(project: Project, image_size: int, bands: int, classes: int) -> VisionMambaConfig:
    """Return the architecture that a project begins with."""
    values = {**SMALL, **project.model}
    return VisionMambaConfig(image_size=image_size, bands=bands, classes=classes, **values)


def as_text(project: Project) -> str:
    """Return what it says besides the defaults, to be compared; where the tiles are is left out."""
    rest = dataclasses.replace(
        project, data="", images=(), phases=(Phase(),), augmentation=Augmentation()
    )
    parts = [project.augmentation, *project.phases, rest]
    return "\n".join(_chosen(part) for part in parts)


def _chosen(part: Any) -> str:
    default = type(part)()
    names = [each.name for each in dataclasses.fields(part)]
    chosen = {n: getattr(part, n) for n in names if getattr(part, n) != getattr(default, n)}
    return f"{type(part).__name__} {json.dumps(chosen, default=dataclasses.asdict)}"
