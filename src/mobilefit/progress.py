"""Progress of long work on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from mobilefit.text import printable

LINE_SECONDS = 15.0
"""Between two lines where standard error is not a terminal."""


class Progress:
    """Counts units of work and shows rate and time left.

    Args:
        total: units in all.
        label: what is being done, a few words; ``None``: show nothing.
        unit: what is counted.
        done: units done in an earlier, interrupted run.
    """

    def __init__(self, total: int, label: str | None, *, unit: str = "img", done: int = 0) -> None:
        self._lines = label is not None and not sys.stderr.isatty()
        self._label, self._total, self._unit = label, total, unit
        self._start = self._done = done
        self._began = self._printed = time.monotonic()
        self._bar = tqdm(
            desc=label, total=total, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True,
            leave=False, disable=label is None or self._lines,
        )  # fmt: skip

    def update(self, units: int, note: str = "") -> None:
        """Count ``units`` more as done."""
        self._done += units
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(units)
        now = time.monotonic()
        if self._lines and now - self._printed > LINE_SECONDS:
            self._printed = now
            print(self._line(now, note), file=sys.stderr, flush=True)

    def _line(self, now: float, note: str) -> str:
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        left = tqdm.format_interval(max(self._total - self._done, 0) / max(rate, 1e-9))
        share = f"{self._done}/{self._total} {self._unit}, {rate:.0f} {self._unit}/s"
        return f"{self._label}: {share}, {left} left {note}".rstrip()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Voice:
    """What a verb says while it works, on standard error.

    Args:
        quiet: say nothing, and show no progress.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def __call__(self, line: str) -> None:
        """Say a line."""
        if not self.quiet:
            tqdm.write(printable(line), file=sys.stderr)
            sys.stderr.flush()

    def label(self, text: str) -> str | None:
        """A label for :class:`Progress`, which shows nothing for ``None``."""
        return None if self.quiet else text
