from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gigavim.encoder import Features, VisionMamba, VisionMambaConfig
from gigavim.errors import ModelError, StoreError
from gigavim.mixer import TILE
from gigavim.precision import products_in
from gigavim.streamed import (
    DiskScratch,
    Mark,
    MemoryScratch,
    Mixed,
    Scratch,
    mix,
    rows_like,
    rows_of,
)
from gigavim.streamed import scratch as scratch_module

SMALL = VisionMambaConfig(
    image_size=16, patch=8, stride=8, width=8, depth=2, state=3, classes=0, dt_rank=2
)
MODELS = {
    "published": SMALL,
    "head": replace(SMALL, class_token="head"),
    "tail": replace(SMALL, class_token="tail", depth=1),
    "double": replace(SMALL, class_token="double"),
    "mean": replace(SMALL, class_token="none", depth=3),
    "last": replace(SMALL, class_token="none", pool="last"),
    "v1": replace(SMALL, directions="v1"),
    "v1 with long taps": replace(SMALL, directions="v1", conv=6, class_token="double"),
    "forward": replace(SMALL, directions="forward", depth=3),
    "layer norm": replace(SMALL, norm="layer", layer_scale=0.5),
    "no positions": replace(SMALL, position="none", conv=2),
}
LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 31, 101, 257]) | st.integers(1, 150)


def model_of(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> VisionMamba:
    return perturbed(MODELS[name], dtype, seed)


def perturbed(
    config: VisionMambaConfig, dtype: torch.dtype = torch.float64, seed: int = 0
) -> VisionMamba:
    """An encoder in which no weight is zero."""
    torch.manual_seed(seed)
    encoder = VisionMamba(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def sequence_for(encoder: VisionMamba, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    like = next(encoder.parameters())
    tokens = torch.randn(length, encoder.config.width, generator=generator, dtype=torch.float64)
    return tokens.to(like.dtype)


def uncut(encoder: VisionMamba, tokens: Tensor) -> Features:
    """What the encoder itself makes of the whole sequence at once."""
    with torch.inference_mode():
        # Zeros for positions: the class tokens get theirs, the others have them already.
        return encoder.mix(tokens[None], torch.zeros_like(tokens))


def in_memory(encoder: VisionMamba, length: int, chunk: int) -> MemoryScratch:
    like = rows_like(encoder)
    return MemoryScratch(rows_of(encoder, length), encoder.config.width, chunk, like)


def on_disk(
    encoder: VisionMamba, length: int, chunk: int, folder: Path, identity: str = "a run"
) -> DiskScratch:
    like = rows_like(encoder)
    rows = rows_of(encoder, length)
    return DiskScratch(folder, identity, rows, encoder.config.width, chunk, like)


def streamed(
    encoder: VisionMamba, tokens: Tensor, scratch: Scratch, on_chunk: Callable[[int], None] = id
) -> Mixed:
    return mix(
        encoder,
        [(np.arange(len(tokens)), tokens)],
        len(tokens),
        scratch,
        positioned=True,
        on_chunk=on_chunk,
    )


def close(found: Mixed, expected: Features, length: int, bound: float) -> None:
    tokens, vector = expected.tokens[0], expected.vector[0]
    scale = max(1.0, float(tokens.abs().max())) if length else 1.0
    assert found.tokens(0, length).shape == tokens.shape
    if length:
        assert float((found.tokens(0, length) - tokens).abs().max()) <= bound * scale
    torch.testing.assert_close(found.vector, vector, rtol=bound, atol=bound * scale, equal_nan=True)


@given(
    name=st.sampled_from(sorted(MODELS)),
    length=LENGTHS,
    chunk=st.integers(1, 300),
    seed=st.integers(0, 5),
)
@settings(max_examples=120)
def test_a_sequence_may_be_cut_anywhere(name: str, length: int, chunk: int, seed: int) -> None:
    encoder = model_of(name, seed=seed)
    if not length and encoder.config.pool == "last":
        return
    tokens = sequence_for(encoder, length)
    found = streamed(encoder, tokens, in_memory(encoder, length, chunk))
    close(found, uncut(encoder, tokens), length, 1e-10)


@pytest.mark.parametrize("name", ["published", "v1", "double", "forward"])
@pytest.mark.parametrize("chunk", [1000, 2048, 7919])
def test_thousands_of_tokens_are_mixed_as_one_sequence(name: str, chunk: int) -> None:
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        encoder = model_of(name, dtype)
        tokens = sequence_for(encoder, 5003)
        found = streamed(encoder, tokens, in_memory(encoder, 5003, chunk))
        close(found, uncut(encoder, tokens), 5003, bound)


@pytest.mark.parametrize("name", ["published", "v1", "mean"])
def test_chunks_of_whole_tiles_give_the_same_bits(name: str) -> None:
    encoder, length = model_of(name, torch.float32), 3 * TILE + 11
    tokens = sequence_for(encoder, length)
    results = [
        streamed(encoder, tokens, in_memory(encoder, length, count * TILE)) for count in (1, 2, 9)
    ]
    for result in results[1:]:
        assert torch.equal(result.tokens(0, length), results[0].tokens(0, length))
        assert torch.equal(result.vector, results[0].vector)


@given(order=st.permutations(range(7)), name=st.sampled_from(["published", "double", "mean"]))
def test_tokens_may_come_in_any_order(order: list[int], name: str) -> None:
    encoder = model_of(name)
    tokens = sequence_for(encoder, 50)
    places = np.random.default_rng(0).permutation(50)
    parts = [places[7 * number : 7 * number + 7] for number in range(8)]
    parts = [parts[number] for number in order] + [parts[7]]
    scratch = in_memory(encoder, 50, 9)
    found = mix(encoder, ((p, tokens[p]) for p in parts), 50, scratch, positioned=True)
    close(found, uncut(encoder, tokens), 50, 1e-10)


def test_features_are_read_in_any_part() -> None:
    encoder = model_of("published")
    tokens = sequence_for(encoder, 40)
    found = streamed(encoder, tokens, in_memory(encoder, 40, 7))
    whole = found.tokens(0, 40)
    for start, stop in ((0, 1), (19, 21), (20, 40), (5, 5)):
        torch.testing.assert_close(found.tokens(start, stop), whole[start:stop], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_scratch_on_disk_gives_the_bits_of_one_in_memory(name: str, tmp_path: Path) -> None:
    encoder = model_of(name)
    tokens = sequence_for(encoder, 60)
    expected = streamed(encoder, tokens, in_memory(encoder, 60, 13))
    with on_disk(encoder, 60, 13, tmp_path) as scratch:
        found = streamed(encoder, tokens, scratch)
        assert torch.equal(found.tokens(0, 60), expected.tokens(0, 60))
        assert torch.equal(found.vector, expected.vector)


class Killed(BaseException):
    """In place of a signal."""


class DiesWhileWriting(DiskScratch):
    """Fails after so many writes, the last of them half done."""

    left = 0

    def write(self, table: int, start: int, rows: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            super().write(table, start, torch.full_like(rows[: len(rows) // 2 + 1], 9e9))
            raise Killed
        super().write(table, start, rows)


@given(
    name=st.sampled_from(["published", "v1", "double", "mean", "forward"]),
    length=st.integers(1, 60),
    chunk=st.integers(1, 30),
    kills=st.lists(st.integers(1, 25), max_size=4),
)
@settings(max_examples=60)
def test_a_killed_run_continues_to_the_same_bits(
    name: str,
    length: int,
    chunk: int,
    kills: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    encoder = model_of(name)
    tokens = sequence_for(encoder, length)
    expected = streamed(encoder, tokens, in_memory(encoder, length, chunk))
    folder, like = tmp_path_factory.mktemp("scratch"), rows_like(encoder)
    for after in kills:
        dying = DiesWhileWriting(folder, "run", rows_of(encoder, length), 8, chunk, like)
        dying.left = after
        with dying:
            try:
                streamed(encoder, tokens, dying)
            except Killed:
                continue
    with on_disk(encoder, length, chunk, folder, "run") as scratch:
        found = streamed(encoder, tokens, scratch)
        assert torch.equal(found.tokens(0, length), expected.tokens(0, length))
        assert torch.equal(found.vector, expected.vector)


def test_a_killed_run_with_products_in_half_precision_continues_to_the_same_bits(
    tmp_path: Path,
) -> None:
    encoder = model_of("published", torch.float32)
    tokens = sequence_for(encoder, 30)
    with products_in("bfloat16", "cpu"):
        expected = streamed(encoder, tokens, in_memory(encoder, 30, 7))
        dying = DiesWhileWriting(tmp_path, "run", rows_of(encoder, 30), 8, 7, rows_like(encoder))
        dying.left = 10
        with dying, pytest.raises(Killed):
            streamed(encoder, tokens, dying)
        with on_disk(encoder, 30, 7, tmp_path, "run") as scratch:
            found = streamed(encoder, tokens, scratch)
            assert torch.equal(found.tokens(0, 30), expected.tokens(0, 30))


def test_a_kill_loses_one_chunk_of_one_layer(tmp_path: Path) -> None:
    encoder = model_of("published")
    tokens = sequence_for(encoder, 40)
    done: list[int] = []

    def stop(rows: int) -> None:
        done.append(rows)
        if len(done) == 5:
            raise Killed

    with on_disk(encoder, 40, 10, tmp_path) as scratch, pytest.raises(Killed):
        streamed(encoder, tokens, scratch, stop)
    with on_disk(encoder, 40, 10, tmp_path) as scratch:
        mark = scratch.mark()
        assert mark is not None
        assert mark.step == 5


PROGRAM = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
import test_streamed as t
from gigavim.streamed import DiskScratch

class Exits(DiskScratch):
    def commit(self, mark):
        if mark.step == {step}:
            os._exit(9)
        super().commit(mark)

folder = Path({folder!r})
encoder = t.model_of("published")
tokens = t.sequence_for(encoder, 50)
like = t.rows_like(encoder)
with Exits(folder, "a run", t.rows_of(encoder, 50), 8, 7, like) as scratch:
    torch.save(t.streamed(encoder, tokens, scratch).tokens(0, 50), folder.with_suffix(".pt"))
"""


def test_a_process_that_dies_leaves_what_the_next_needs(tmp_path: Path) -> None:
    def ends_with(folder: Path, step: int) -> int:
        program = PROGRAM.format(tests=str(Path(__file__).parent), step=step, folder=str(folder))
        return subprocess.run([sys.executable, "-c", program], check=False).returncode

    # Both end in a process of their own: what ran before in this one may have changed its threads.
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ends_with(whole, -1) == 0
    assert [ends_with(killed, step) for step in (0, 3, 12, 31)] == [9] * 4
    encoder = model_of("published")
    with on_disk(encoder, 50, 7, killed) as scratch:
        mark = scratch.mark()
        assert mark is not None
        assert mark.step == 30
    assert ends_with(killed, -1) == 0
    assert torch.equal(*(torch.load(each.with_suffix(".pt")) for each in (killed, whole)))


def test_what_another_run_left_is_started_over(tmp_path: Path) -> None:
    encoder = model_of("published")
    with on_disk(encoder, 30, 8, tmp_path, "one image") as scratch:
        streamed(encoder, sequence_for(encoder, 30), scratch)
    tokens = sequence_for(encoder, 30, seed=2)
    with on_disk(encoder, 30, 8, tmp_path, "another image") as scratch:
        assert scratch.mark() is None
        close(streamed(encoder, tokens, scratch), uncut(encoder, tokens), 30, 1e-10)
    with on_disk(encoder, 30, 8, tmp_path, "one image") as scratch:
        assert scratch.mark() is None


def test_a_resumed_run_keeps_smaller_chunks_and_starts_over_from_larger_ones(
    tmp_path: Path,
) -> None:
    encoder = model_of("published")
    for chunk in (16, 8):
        with on_disk(encoder, 30, chunk, tmp_path) as scratch:
            assert (scratch.mark(), scratch.chunk) == (None, chunk)
            scratch.commit(Mark(3))
    with on_disk(encoder, 30, 12, tmp_path) as scratch:
        assert (scratch.mark(), scratch.chunk) == (Mark(3), 8)


@pytest.mark.parametrize("name", ["published", "forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_no_number_stops_the_run_and_says_where(
    name: str, dtype: torch.dtype, bad: float
) -> None:
    encoder = model_of(name, dtype)
    tokens = sequence_for(encoder, 40)
    tokens[25, 3] = bad
    scratch = in_memory(encoder, 40, 10)
    with pytest.raises(ModelError, match=r"layer 1 of \d became .* chunk 3 of \d, forwards"):
        streamed(encoder, tokens, scratch)
    mark = scratch.mark()
    assert mark is not None
    assert mark.step == 2


@given(
    rope=st.sampled_from(["tokens", "tokens and residual"]),
    directions=st.sampled_from(["v2", "v1", "forward"]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunk=st.integers(1, 90),
    data=st.data(),
)
@settings(max_examples=40)
def test_tokens_are_turned_by_their_places_on_any_grid(
    rope: Any, directions: Any, grid: tuple[int, int], chunk: int, data: st.DataObject
) -> None:
    config = replace(SMALL, class_token="none", rope=rope, directions=directions, depth=3)
    encoder = perturbed(config)
    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)
    chosen = data.draw(st.lists(st.integers(0, len(cells) - 1), unique=True))
    index, length = cells[chosen], len(chosen)
    tokens = sequence_for(encoder, length)
    cut = data.draw(st.integers(0, length))
    parts = [(np.arange(cut, length), tokens[cut:]), (np.arange(cut), tokens[:cut])]
    found = mix(
        encoder, parts, length, in_memory(encoder, length, chunk),
        positioned=True, index=index, grid=grid,
    )  # fmt: skip
    with torch.inference_mode():
        expected = encoder.mix(tokens[None], torch.zeros_like(tokens), index=index, grid=grid)
    close(found, expected, length, 1e-10)


def test_tokens_cannot_be_turned_without_their_places() -> None:
    encoder = perturbed(replace(SMALL, class_token="none", rope="tokens"))
    with pytest.raises(ValueError, match="need the row and column of each of 4 tokens"):
        streamed(encoder, sequence_for(encoder, 4), in_memory(encoder, 4, 2))


@pytest.mark.parametrize("name", ["published", "mean"])
def test_tables_on_the_host_give_the_bits_of_tables_on_the_device(name: str) -> None:
    encoder = model_of(name)
    tokens = sequence_for(encoder, 60)
    scratches = [
        MemoryScratch(rows_of(encoder, 60), 8, 13, rows_like(encoder), on_host=on_host)
        for on_host in (False, True)
    ]
    device, host = (streamed(encoder, tokens, scratch) for scratch in scratches)
    assert torch.equal(host.tokens(0, 60), device.tokens(0, 60))
    assert torch.equal(host.vector, device.vector)


def test_a_sequence_of_too_few_tokens_is_a_mistake() -> None:
    encoder = model_of("published")
    parts = [(np.arange(3), sequence_for(encoder, 3))]
    with pytest.raises(ValueError, match="has 5 tokens, and 3 came"):
        mix(encoder, parts, 5, in_memory(encoder, 5, 2), positioned=True)
    with pytest.raises(ValueError, match="at least one token"):
        in_memory(encoder, 5, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    import resource
    import signal

    encoder = model_of("published")
    tokens = sequence_for(encoder, 400)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with (
            on_disk(encoder, 400, 16, tmp_path) as scratch,
            pytest.raises(StoreError, match=r"cannot write .*ulimit -f.*-o"),
        ):
            streamed(encoder, tokens, scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with on_disk(encoder, 400, 16, tmp_path) as scratch:
        close(streamed(encoder, tokens, scratch), uncut(encoder, tokens), 400, 1e-10)


def test_the_journal_follows_the_bytes_that_it_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, write_file = os.fsync, scratch_module.write_file

    def synced(number: int) -> None:
        order.append("bytes")
        fsync(number)

    def journaled(path: Path, data: memoryview) -> None:
        order.append("journal")
        write_file(path, data)
        order.append("end")

    monkeypatch.setattr(scratch_module.os, "fsync", synced)
    monkeypatch.setattr(scratch_module, "write_file", journaled)
    encoder = model_of("published")
    with on_disk(encoder, 20, 10, tmp_path) as scratch:
        scratch.write(0, 0, sequence_for(encoder, 10))
        scratch.commit(Mark(1))
    assert order[:2] == ["bytes", "journal"]
