"""How much the package writes to the terminal, and what runs frozen encoders on a CPU."""

from __future__ import annotations

import logging
import sys

from sigmma_sc._checks import require_choice

HINT = (logging.INFO + logging.DEBUG) // 2
"""Level of hints, as in scanpy."""

LEVELS = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "hint": HINT,
    "debug": logging.DEBUG,
}
"""Levels of Python's logging by name, as in scanpy."""

RUNTIMES = ("auto", "torch")
"""What may run a frozen encoder on a CPU."""

logger = logging.getLogger("sigmma_sc")


class TerminalHandler(logging.Handler):
    """Write messages to standard error, as long as the user has set up no logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message. Handlers of the root logger get it anyhow."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


class Settings:
    """Settings of the package, as ``sg.settings``.

    Attributes
    ----------
    verbosity
        How much is told: ``"error"``, ``"warning"``, ``"info"`` (the default), ``"hint"`` or ``"debug"``, as in scanpy. It is
        the level of the logger ``sigmma_sc``, whose messages go to standard error unless logging is set up. Below ``"info"``
        no progress is shown. At ``"debug"`` the notices of other packages are shown as well. Warnings of the package are
        Python warnings, which ``warnings`` filters.
    cpu_runtime
        What runs a frozen image encoder on a CPU: ``"auto"`` (the default) is ONNX Runtime if it is installed
        (``pip install "sigmma-sc[onnx]"``), and torch otherwise. ``"torch"`` is torch in any case. Features are the same up
        to rounding, and not to the last bit (page *Image encoders*).

    Raises
    ------
    SetupError
        There is no such level or runtime.

    Examples
    --------
    >>> sg.settings.verbosity
    'info'
    >>> sg.settings.verbosity = "warning"  # no progress, no choices
    >>> sg.settings.verbosity = "info"
    >>> sg.settings.verbosity = "loud"
    Traceback (most recent call last):
        ...
    sigmma_sc.errors.SetupError: verbosity='loud' is not one of 'error', 'warning', 'info', 'hint', 'debug'.
    """

    def __init__(self) -> None:
        self.verbosity = "info"
        self.cpu_runtime = "auto"

    @property
    def verbosity(self) -> str:
        """How much is told, see :class:`Settings`."""
        return self._verbosity

    @verbosity.setter
    def verbosity(self, level: str) -> None:
        require_choice(level, LEVELS, "verbosity")
        self._verbosity = level
        logger.setLevel(LEVELS[level])

    @property
    def cpu_runtime(self) -> str:
        """What runs a frozen image encoder on a CPU, see :class:`Settings`."""
        return self._cpu_runtime

    @cpu_runtime.setter
    def cpu_runtime(self, name: str) -> None:
        require_choice(name, RUNTIMES, "cpu_runtime")
        self._cpu_runtime = name

    def shows(self, level: str) -> bool:
        """Whether messages of a level are shown."""
        return LEVELS[level] >= LEVELS[self._verbosity]

    def __repr__(self) -> str:
        return f"Settings(verbosity={self._verbosity!r}, cpu_runtime={self._cpu_runtime!r})"


logging.addLevelName(HINT, "HINT")
terminal = TerminalHandler()
logger.addHandler(terminal)
settings = Settings()
