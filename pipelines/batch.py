"""Many images, one after the other: a bad one never costs another its result."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.pipelines.report import Progress, Summary
from gigavim.pipelines.run import run_image

logger = logging.getLogger(__name__)

SUFFIX = ".gigavim.zarr"


def run_images(
    paths: Sequence[str],
    output: Path,
    config: RunConfig,
    resources: Resources,
    *,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    on_done: Callable[[Summary], None] | None = None,
    debug: bool = False,
) -> list[Summary]:
    """Map each image.

    Parameters
    ----------
    output
        A folder; with one image, it may be the store itself, if it is named so.
    on_done
        Told of each image that did not fail.
    debug
        Show the traceback of what fails.

    Returns
    -------
    summaries
        One an image, in their order; what fails is reported on stderr at once.
    """
    summaries = []
    for path in paths:
        logger.info("%s: begins", path)
        try:
            store = store_path(path, output, alone=len(paths) == 1)
            summary = run_image(
                path, store, config, resources, force=force, command=command, progress=progress
            )
        except GigavimError as error:
            logger.info("%s: failed: %s", path, error)
            if debug:
                traceback.print_exc()
            print(f"gigavim: {error}", file=sys.stderr)
            summaries.append(Summary(path, "failed", error=str(error)))
            continue
        logger.info("%s: %s", path, summary)
        summaries.append(summary)
        if on_done is not None:
            on_done(summary)
    return summaries


def store_path(path: str, output: Path, *, alone: bool) -> Path:
    """Return where the store of an image goes.

    >>> store_path("a/slide.ome.tif", Path("out"), alone=True).name
    'slide.gigavim.zarr'
    """
    if alone and output.name.endswith(".zarr"):
        return output
    name = Path(path).name
    for suffix in (Path(name).suffix, ".ome"):
        # A DICOM file's name is a number with dots; only a suffix that says what it is goes.
        if not suffix[1:].isdigit():
            name = name.removesuffix(suffix)
    return output / f"{name}{SUFFIX}"
