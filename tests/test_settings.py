import logging

import pytest

from sigmma_sc import settings
from sigmma_sc._settings import HINT, LEVELS, logger
from sigmma_sc.errors import SetupError


@pytest.fixture(autouse=True)
def restored():
    yield
    settings.verbosity = "info"


def test_levels_are_those_of_scanpy():
    import scanpy

    named = {name: getattr(scanpy.Verbosity, name) for name in LEVELS}
    assert list(LEVELS) == sorted(named, key=named.get)
    for name, level in named.items():
        assert LEVELS[name] == level.level
    assert logging.getLevelName(HINT) == "HINT"


@pytest.mark.parametrize("verbosity", LEVELS)
def test_messages_below_the_level_are_not_shown(monkeypatch, capsys, verbosity):
    # As for a user who has set up no logging: pytest has handlers of its own.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    settings.verbosity = verbosity
    for name, level in LEVELS.items():
        logger.log(level, "%s", name)
    printed = capsys.readouterr()
    assert printed.err.split() == [name for name in LEVELS if settings.shows(name)]
    assert printed.err.split()[-1] == verbosity
    assert printed.out == ""


def test_with_logging_set_up_a_message_is_shown_once(capsys, caplog):
    logger.warning("once")
    assert caplog.messages == ["once"]
    assert capsys.readouterr().err == ""


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(SetupError, match="verbosity=3 is not one of 'error', 'warning'"):
        settings.verbosity = 3
    assert repr(settings) == "Settings(verbosity='info', cpu_runtime='torch')"
