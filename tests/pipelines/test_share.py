from __future__ import annotations

import dataclasses
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gigavim.checkpoint import Model, ModelSpec, load_model, save_model
from gigavim.encoder import Features, VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError, ModelError, StoreError
from gigavim.pipelines import share
from gigavim.pipelines.segment import Rows
from gigavim.pipelines.share import DaskWorkers, Mixed, Workers, cut, dask_workers, mix_shared

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
VARIANTS: dict[str, dict[str, Any]] = {
    "v2": {},
    "v1": {"directions": "v1", "class_token": "double", "norm": "layer"},
    "forward": {"directions": "forward", "class_token": "tail"},
    "pooled": {"class_token": "none", "position": "none", "layer_scale": 0.5, "halve": False},
    "last": {"class_token": "none", "pool": "last", "conv": 2},
    "head": {"class_token": "head"},
}


class Here:
    """Workers in this process, who do what is asked when it is waited for, in any order."""

    def __init__(self, count: int = 1, seed: int = 0) -> None:
        self.count, self.random = count, random.Random(seed)
        self.sent: list[int] = []
        """Bytes to and from the workers."""

    def __len__(self) -> int:
        return self.count

    def submit(self, number: int, function: Callable[..., Any], *args: Any) -> Task:
        self.sent.append(sum(len(pickle.dumps(a)) for a in args if not isinstance(a, Task)))
        return Task(function, args)

    def gather(self, futures: Sequence[Task]) -> list[Any]:
        for task in self.random.sample(futures, len(futures)):
            task.result()
        results = [task.result() for task in futures]
        self.sent += [len(pickle.dumps(result)) for result in results]
        return results


class Task:
    def __init__(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        self.function, self.args, self.done = function, args, False

    def result(self) -> Any:
        if not self.done:
            args = [arg.result() if isinstance(arg, Task) else arg for arg in self.args]
            self.value, self.done = self.function(*args), True
        return self.value


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small encoders whose states remember for long, one of each kind."""
    folder = tmp_path_factory.mktemp("models")
    for name, different in VARIANTS.items():
        torch.manual_seed(0)
        config = VisionMambaConfig(
            **{"image_size": 32, "patch": 8, "stride": 8, "width": 16, "depth": 2, "state": 4,
               "classes": 0} | different
        )  # fmt: skip
        encoder = VisionMamba(config)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        spec = ModelSpec(config, mean=(0.5,) * 3, std=(0.5,) * 3, tile=32)
        save_model(folder / f"{name}.safetensors", encoder, spec)
    return {name: folder / f"{name}.safetensors" for name in VARIANTS}


@pytest.fixture(scope="module")
def pair() -> Iterator[DaskWorkers]:
    with dask_workers(2) as workers:
        yield workers


def load(path: Path, dtype: torch.dtype = torch.float64) -> Model:
    model = load_model(path)
    return dataclasses.replace(model, encoder=model.encoder.to(dtype))


def tokens_of(model: Model, length: int) -> Rows:
    random = np.random.default_rng(length)
    dtype = str(next(model.encoder.parameters()).dtype).removeprefix("torch.")
    return random.normal(size=(length, model.encoder.config.width)).astype(dtype)


def uncut(model: Model, tokens: Rows) -> Features:
    """The encoder's own answer; positions are in the tokens, those of class tokens too."""
    with torch.inference_mode():
        return model.encoder.mix(
            torch.from_numpy(tokens)[None], torch.zeros(tokens.shape, dtype=torch.float32)
        )


def check(found: Mixed, model: Model, tokens: Rows) -> None:
    wanted = uncut(model, tokens)
    within = TOLERANCE[wanted.tokens.dtype]
    features = np.concatenate(found.parts)
    assert features.dtype == tokens.dtype
    np.testing.assert_allclose(features, wanted.tokens[0].numpy(), rtol=within, atol=within)
    np.testing.assert_allclose(found.vector, wanted.vector[0].numpy(), rtol=within, atol=within)


def shared(workers: Workers, model: Model, tokens: Rows, folder: Path, **options: Any) -> Mixed:
    options = {"chunk": 1000} | options
    halves = np.array_split(tokens, 2)
    return mix_shared(workers, model, halves, len(tokens), folder=folder, **options)


@settings(max_examples=25)
@given(st.data())
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_may_be_cut_in_any_segments(
    models: dict[str, Path], variant: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(sorted(TOLERANCE, key=str)))
    model = load(models[variant], dtype)
    lengths = data.draw(st.lists(st.integers(0, 12) | st.just(37), min_size=1, max_size=4))
    classes = len(model.encoder.config.class_index(0))
    lengths[0] += max(0, classes + 1 - sum(lengths))
    tokens = tokens_of(model, sum(lengths) - classes)
    chunk = data.draw(st.integers(1, 40))
    workers = Here(seed=data.draw(st.integers(0, 9)))
    with TemporaryDirectory() as folder:
        found = shared(workers, model, tokens, Path(folder), lengths=lengths, chunk=chunk)
        check(found, model, tokens)


def test_what_workers_exchange_does_not_grow_with_the_sequence(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model = load(models["v2"])
    sent = []
    for length in (300, 3000):
        workers = Here(3)
        folder = tmp_path / str(length)
        folder.mkdir()
        shared(workers, model, tokens_of(model, length), folder, chunk=64)
        sent.append(workers.sent)
    # Numbers are pickled in one to four bytes.
    np.testing.assert_allclose(sent[1], sent[0], atol=12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [(101,), (50, 51), (1, 100), (40, 20, 41)])
def test_processes_of_a_cluster_share_a_sequence(
    pair: DaskWorkers,
    models: dict[str, Path],
    tmp_path: Path,
    dtype: torch.dtype,
    lengths: tuple[int, ...],
) -> None:
    model = load(models["v2"], dtype)
    tokens = tokens_of(model, 100)
    check(shared(pair, model, tokens, tmp_path, lengths=lengths), model, tokens)


def test_a_killed_worker_changes_no_bit(
    pair: DaskWorkers, models: dict[str, Path], tmp_path: Path
) -> None:
    model = load(models["v2"], torch.float32)
    tokens = tokens_of(model, 20_000)
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    whole = shared(pair, model, tokens, folders[0], chunk=2000)
    victim = next(iter(pair.client.run(os.getpid).values()))
    killed = threading.Event()

    def kill_in_the_second_layer() -> None:
        while not any(folders[1].glob("*layer-002*.partial")):
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_in_the_second_layer, daemon=True)
    killer.start()
    found = shared(pair, model, tokens, folders[1], chunk=2000)
    assert killed.is_set()
    killer.join()
    np.testing.assert_array_equal(np.concatenate(found.parts), np.concatenate(whole.parts))
    check(found, model, tokens)


class Stopping(Here):
    """Ends with the first task of a layer."""

    def __init__(self, layer: int) -> None:
        super().__init__(2)
        self.layer = layer

    def submit(self, number: int, function: Callable[..., Any], *args: Any) -> Task:
        if len(args) > 1 and args[1] == self.layer:
            raise KeyboardInterrupt
        return super().submit(number, function, *args)


def test_a_run_goes_on_after_the_last_whole_layer(models: dict[str, Path], tmp_path: Path) -> None:
    model = load(models["v2"])
    tokens = tokens_of(model, 50)
    with pytest.raises(KeyboardInterrupt):
        shared(Stopping(1), model, tokens, tmp_path)
    layers: list[int] = []
    found = shared(Here(2), model, tokens, tmp_path, on_layer=layers.append)
    assert layers == [50]
    check(found, model, tokens)


def test_spills_of_another_sequence_are_not_used(models: dict[str, Path], tmp_path: Path) -> None:
    model = load(models["v2"])
    shared(Here(2), model, tokens_of(model, 50), tmp_path)
    tokens = tokens_of(model, 51)
    check(shared(Here(2), model, tokens, tmp_path), model, tokens)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_model_on_a_worker_is_refused(
    pair: DaskWorkers, models: dict[str, Path], tmp_path: Path
) -> None:
    model = dataclasses.replace(load(models["v2"]), sha256="0" * 64)
    with pytest.raises(ModelError, match=r"is another model \(.*, not 000000000000\); copy"):
        shared(pair, model, tokens_of(model, 9), tmp_path)


def test_another_version_on_a_worker_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "__version__", "99.0")
    with (
        pytest.raises(GigavimError, match=r"has GigaVim .*, this is 99\.0; install the same"),
        dask_workers(1),
    ):
        pass


def test_a_scheduler_that_does_not_answer_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(share, "PATIENCE_S", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with (
            pytest.raises(GigavimError, match=f"no Dask workers at {address}: .*; start them"),
            dask_workers(scheduler=address),
        ):
            pass


def test_a_folder_that_workers_do_not_see_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    class Elsewhere(Here):
        def submit(self, number: int, function: Callable[..., Any], *args: Any) -> Task:
            missing = str(tmp_path / "missing")
            hidden = [
                dataclasses.replace(a, folder=missing) if isinstance(a, share.Segment) else a
                for a in args
            ]
            return super().submit(number, function, *hidden)

    model = load(models["v2"])
    with pytest.raises(StoreError, match=r"is not to be seen on .*; put the scratch folder where"):
        shared(Elsewhere(2), model, tokens_of(model, 9), tmp_path)


def test_a_state_that_is_not_finite_is_traced_to_its_tokens(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model = load(models["v2"])
    tokens = tokens_of(model, 100)
    tokens[73] = np.nan
    with pytest.raises(ModelError, match=r"layer 1 of 2 .* NaN over rows 7[0-9] to [78][0-9]; "):
        shared(Here(2), model, tokens, tmp_path, chunk=8)


def test_rotary_positions_are_refused(tmp_path: Path) -> None:
    config = VisionMambaConfig(
        image_size=32, patch=8, stride=8, width=16, depth=1, state=4, classes=0,
        class_token="none", rope="tokens",
    )  # fmt: skip
    spec = ModelSpec(config, mean=(0.5,) * 3, std=(0.5,) * 3, tile=32)
    model = Model(VisionMamba(config), spec, tmp_path / "rope.safetensors", "")
    with pytest.raises(ModelError, match=r"rope\.safetensors turns tokens by their position"):
        shared(Here(2), model, tokens_of(model, 9), tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_segments_make_up_the_sequence(workers: int) -> None:
    for total in (0, 1, 1009):
        assert sum(cut(total, workers)) == total
        assert len(cut(total, workers)) == workers
