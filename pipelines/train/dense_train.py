"""Training of the model that ships as ``nuclei``.

``python -m gigavim.pipelines.train.dense_train DATA OUTPUT``; a run that was stopped is continued
by the same command.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from gigavim.pipelines.train.dense import CROP, new_model, nuclei_task, read_nuclei
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import architecture, read_project

RECIPE = Path(__file__).parent / "recipes" / "nuclei.toml"


def train_nuclei(data: Path, output: Path) -> None:
    """Train on a folder for `read_nuclei` and write the model."""
    project = read_project(RECIPE)
    sets = read_nuclei(data)
    (phase,) = project.phases
    model = new_model(architecture(project, CROP, 3, 0), project.seed)
    task = nuclei_task(sets, project.augmentation, phase, project.seed)
    fit(model, task, phase, output.with_suffix(".train"), device="cpu")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_nuclei(Path(sys.argv[1]), Path(sys.argv[2]))
