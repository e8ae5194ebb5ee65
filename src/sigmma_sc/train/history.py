"""Losses by epoch."""

from typing import TypedDict

import pandas as pd


class LossJson(TypedDict):
    """One loss by epoch."""

    by: str | None
    index: list[int]
    values: list[float]


HistoryJson = dict[str, LossJson]
"""Losses by epoch as models and checkpoints store them."""


def history_to_json(history: dict[str, pd.DataFrame]) -> HistoryJson:
    """Losses by epoch as plain JSON, exact to the last bit."""
    stored: HistoryJson = {}
    for name, frame in history.items():
        stored[name] = {
            "by": frame.index.name,
            "index": [int(epoch) for epoch in frame.index],
            "values": [float(value) for value in frame[name]],
        }
    return stored


def history_from_json(stored: HistoryJson) -> dict[str, pd.DataFrame]:
    """Rebuild what :func:`history_to_json` gave."""
    history = {}
    for name, part in stored.items():
        history[name] = pd.DataFrame({name: part["values"]}, pd.Index(part["index"], name=part["by"]))
    return history
