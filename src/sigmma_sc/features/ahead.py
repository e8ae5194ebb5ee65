"""Work that overlaps: the next item is prepared, or begun, before the last one is used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; a thread prepares the next one while this one is used.

    An error of the items is raised where the item would have come. No thread is left, whether they are used up or not.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        turn = thread.submit(_next, source)
        while item := turn.result():
            turn = thread.submit(_next, source)
            yield item[0]


def _next(source: Iterator[Item]) -> tuple[Item] | None:
    """The next item, or nothing: an end cannot be raised through a thread into a generator."""
    for item in source:
        return (item,)
    return None


def late(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each after the next one is there: a device can work on that one while the host waits for this."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
