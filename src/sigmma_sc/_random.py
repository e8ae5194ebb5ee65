"""Random numbers of one's own: two models that train in threads of a process do not change each other's numbers."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_current: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)
_lock = threading.RLock()


KINDS = ("cpu", "cuda", "mps")
"""Devices that have generators; on others, torch's own is drawn from."""


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let this thread draw from a generator of its own, on a device, until the block ends."""
    token = _current.set(torch.Generator(device).manual_seed(seed) if device.type in KINDS else None)
    try:
        yield
    finally:
        _current.reset(token)


def generator(device: torch.device) -> torch.Generator | None:
    """The generator of this thread; ``None``, which is torch's own, where there is none for this device."""
    current = _current.get()
    return current if current is not None and current.device.type == device.type else None


def reseed(seed: int) -> None:
    """Seed the generator of this thread, or torch's own where there is none, as in a process that was started by another."""
    current = _current.get()
    if current is None:
        torch.manual_seed(seed)
    else:
        current.manual_seed(seed)


@contextmanager
def kept_random_state(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Restore torch's own random state when the block ends, for what can draw from nothing else, such as fresh weights.

    One thread at a time. ``seed`` sets the state inside; ``device`` is a GPU whose state is kept too.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _lock, torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
