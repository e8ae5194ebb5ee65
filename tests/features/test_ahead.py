import threading

import pytest

from sigmma_sc.features.ahead import ahead, late


def test_items_are_the_same():
    assert list(ahead(range(5))) == list(late(range(5))) == [0, 1, 2, 3, 4]
    assert list(ahead([])) == list(late([])) == []
    assert list(ahead([None, False])) == [None, False]


def test_the_next_item_is_prepared_while_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def items():
        for event in begun:
            event.set()
            yield event

    source = ahead(items())
    next(source)
    assert begun[1].wait(10)  # without being asked for
    assert list(source) == begun[1:]


def test_an_item_is_used_after_the_next_has_begun():
    order = []

    def items():
        for number in range(3):
            order.append(f"begin {number}")
            yield number

    for number in late(items()):
        order += [f"use {number}"]
    assert order == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]


def test_an_error_comes_in_its_turn_and_no_thread_is_left():
    def items():
        yield 1
        raise ValueError("of the items")

    before = threading.active_count()
    source = ahead(items())
    assert next(source) == 1
    with pytest.raises(ValueError, match="of the items"):
        next(source)
    stopped = ahead(iter(range(9)))
    next(stopped)
    stopped.close()
    assert threading.active_count() == before
