"""The one display of progress: what is done, how much of how much, and how long."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sigmma_sc._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAY = 1.0
"""Seconds that work takes at least to be shown."""

_displayed: ContextVar[bool] = ContextVar("displayed", default=True)
_step: ContextVar[str] = ContextVar("step", default="")


@contextmanager
def displayed(shown: bool) -> Iterator[None]:
    """Show progress within the block, or none; within a block that shows none, none is shown."""
    token = _displayed.set(_displayed.get() and shown)
    try:
        yield
    finally:
        _displayed.reset(token)


@contextmanager
def step(number: int, total: int, name: str) -> Iterator[None]:
    """One of the steps of a command; displays within it carry its number, and its end is told with the time it took."""
    token = _step.set(f"{number}/{total} ")
    began = time.monotonic()
    try:
        yield
    finally:
        _step.reset(token)
    if is_displayed():
        print(f"{number}/{total} {name}: {_clock(time.monotonic() - began)}", file=sys.stderr)


def is_displayed() -> bool:
    """Whether progress is shown: not below verbosity ``"info"``, and of several processes by the first."""
    return _displayed.get() and settings.shows("info") and int(os.environ.get("LOCAL_RANK", 0)) == 0


class Display:
    """Progress of some work: a bar in a terminal or notebook, and a line at the end elsewhere, as in the log of a cluster.

    The bar is text, which a notebook shows without widgets. Work of less than :data:`DELAY` seconds is not shown.
    """

    def __init__(self, what: str, total: float, unit: str, done: float = 0):
        self.what = f"{_step.get()}{what}"
        self.unit = unit
        self.done = done
        self._shown = is_displayed()
        self._nested = bool(_step.get())
        self._began = time.monotonic()
        self._bar = self._new_bar(total) if self._shown and _is_interactive() else None

    def _new_bar(self, total: float) -> Any:  # noqa: ANN401 - tqdm has no types
        # tqdm.auto would ask for ipywidgets in a notebook.
        from tqdm.std import tqdm

        return tqdm(
            desc=self.what, total=total, initial=self.done, unit=f" {self.unit}", delay=DELAY, leave=not self._nested,
            dynamic_ncols=True, file=sys.stderr,
        )  # fmt: skip

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count what is done, with a note beside the bar."""
        self.done += n
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)

    def close(self) -> None:
        """End the display."""
        if self._bar is not None:
            self._bar.close()
            return
        seconds = time.monotonic() - self._began
        if self._shown and not self._nested and seconds >= DELAY:
            print(f"{self.what}: {self.done:,.0f} {self.unit}, {_clock(seconds)}", file=sys.stderr)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _is_interactive() -> bool:
    """Whether standard error is a terminal or a notebook, where a line can be written over."""
    shell = sys.modules.get("IPython")
    if shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr is not None and sys.stderr.isatty()


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
