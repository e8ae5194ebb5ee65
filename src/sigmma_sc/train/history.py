"""Losses by epoch."""

from typing import Any

import pandas as pd


def history_to_json(history: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Losses by epoch as plain JSON, exact to the last bit."""
    stored = {}
    for name, frame in history.items():
        stored[name] = {
            "by": frame.index.name,
            "index": [int(epoch) for epoch in frame.index],
            "values": [float(value) for value in frame[name]],
        }
    return stored


def history_from_json(stored: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Rebuild what :func:`history_to_json` gave."""
    history = {}
    for name, part in stored.items():
        history[name] = pd.DataFrame({name: part["values"]}, pd.Index(part["index"], name=part["by"]))
    return history
