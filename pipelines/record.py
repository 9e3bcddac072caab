"""Progress that is written down as well, so that others can follow a run by its store."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gigavim.errors import GigavimError, StoreError
from gigavim.pipelines.report import Progress
from gigavim.store.running import RunProgress, write_progress

EVERY_S = 0.5
"""Seconds from one record to the next, at least."""
INTERRUPTED = "interrupted; the same run continues where it stopped"


class Recorded:
    """Tells progress on, and keeps a record of it in a store; of what ends the run as well."""

    def __init__(self, progress: Progress, store: Path) -> None:
        self._progress, self._store = progress, store
        self._stage, self._done, self._total = "", 0, 0
        self._started = self._written = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        reason = str(error) if isinstance(error, GigavimError) else INTERRUPTED
        if isinstance(error, (GigavimError, KeyboardInterrupt)):
            # Where the disk is full, the record has no place either.
            with contextlib.suppress(StoreError):
                self._write(reason)

    def start(self, title: str, tokens: int) -> None:
        """Begin a stage that will see so many tokens."""
        self._progress.start(title, tokens)
        self.begin(title, tokens)

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        """Count tokens, and level pixels read for them."""
        self._done += tokens
        if time.perf_counter() - self._written >= EVERY_S:
            self._write()
        self._progress.advance(tokens, megapixels)

    def begin(self, stage: str, total: int = 0) -> None:
        """Record a stage, 0 for one that nobody counts."""
        self._stage, self._done, self._total = stage, 0, total
        self._started = time.perf_counter()
        self._write()

    def _write(self, stopped: str | None = None) -> None:
        self._written = time.perf_counter()
        seconds = self._written - self._started
        record = RunProgress(self._stage, self._done, self._total, seconds, stopped)
        write_progress(self._store, record)
