from __future__ import annotations

import pytest
import torch

from gigavim.pipelines.train.figures import figures_of
from gigavim.pipelines.train.show import print_figures


def test_every_figure_and_count_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    print_figures(figures_of(probs, labels, list("wxyz"), ("forest", "sea")).as_dict())

    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert "0.750" in lines["balanced accuracy"]
    assert [cell.strip() for cell in lines["2 sea"].split("│")[2:4]] == ["1", "1"]
