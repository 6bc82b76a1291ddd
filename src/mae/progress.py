"""Progress reporting on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Self, SupportsFloat

if TYPE_CHECKING:
    from rich.live import Live

LINE_SECONDS = 10.0  # between plain lines; the first is printed after one second
LIVE_SECONDS = 0.1
WINDOW_SECONDS = 30.0  # the rate is averaged over about this time


class Progress:
    """Show rate, metrics and time left, with notes in between; if quiet, show nothing.

    Metrics may be tensors: they are read only when they are shown.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # Redraw only on a capable terminal, and not if plain output is requested.
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown")
        self._redraws = not quiet and not plain and sys.stderr.isatty()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return self._quiet

    def note(self, text: str) -> None:
        """Print a note on its own line."""
        if self._live is not None:
            self._live.console.print(text, soft_wrap=True)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def start(
        self, total: int, *, at: int = 0, images_per_step: int = 1, label: str = "step"
    ) -> None:
        """Start counting `total` steps, of which `at` are already done."""
        self.__exit__()
        self._total, self._images_per_step, self._label = total, images_per_step, label
        self._interval = LIVE_SECONDS if self._redraws else LINE_SECONDS
        now = time.monotonic()
        self._due = now + min(1.0, self._interval)
        self._marks = deque([(now, at)], maxlen=max(2, int(WINDOW_SECONDS / self._interval)))
        if self._redraws:
            self._live = _live_line()

    def update(self, step: int, **numbers: SupportsFloat) -> None:
        """Record that `step` steps are done; shown at each interval and after the last step."""
        now = time.monotonic()
        if self._quiet or (now < self._due and step < self._total):
            return
        text = self._line(now, step, numbers)
        self._marks.append((now, step))
        self._due = now + self._interval
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._live.update(text, refresh=True)

    def _line(self, now: float, step: int, numbers: dict[str, SupportsFloat]) -> str:
        then, before = self._marks[0]
        rate = (step - before) / (now - then) if now > then else 0.0
        parts = [f"{self._label} {step:,}/{self._total:,}"]
        if rate > 0:
            images = rate * self._images_per_step
            parts.append(f"{images:,.0f} images/s" if images >= 100 else f"{images:.3g} images/s")
        parts += [f"{name} {float(value):.4g}" for name, value in numbers.items()]
        if rate > 0:
            parts.append(f"{duration((self._total - step) / rate)} left")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Format a duration as 0:42, 12:05 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _live_line() -> Live:
    from rich.console import Console
    from rich.live import Live

    # Without a refresh thread it draws only in update(), never during a save. stdout is not
    # redirected, since results are printed there.
    console = Console(stderr=True, markup=False, highlight=False)
    live = Live(console=console, auto_refresh=False, redirect_stdout=False)
    live.start()
    # A second Ctrl-C ends the process at once, which would leave a hidden cursor hidden.
    console.show_cursor()
    return live


def minutes_in_words(minutes: float) -> str:
    """Format minutes, as in "1 minute" and "0.5 minutes"."""
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def hours_in_words(hours: float) -> str:
    """Format hours as rounded minutes or hours."""
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{hours:.2g} hours" if hours < 10 else f"{hours:,.0f} hours"
