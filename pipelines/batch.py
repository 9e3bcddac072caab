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
from gigavim.store.naming import store_path

logger = logging.getLogger(__name__)


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
