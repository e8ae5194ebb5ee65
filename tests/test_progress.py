import io
import sys
import types
import warnings

import pytest

from sigmma_sc import _progress, settings
from sigmma_sc._progress import Display, displayed, step


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    yield
    settings.verbosity = "info"


def work(n=4):
    with Display("Encoding slide", n, "crops") as display:
        for _ in range(n):
            display.advance(1, "loss 0.5")


def test_a_terminal_shows_a_bar_of_how_much_and_how_long(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    work()
    last = sys.stderr.getvalue().split("\r")[-1]
    assert "Encoding slide: 100%" in last
    assert "4/4 [00:00<00:00" in last
    assert "loss 0.5" in last


def test_a_log_gets_one_line_at_the_end(capsys):
    work()
    printed = capsys.readouterr()
    assert printed.err == "Encoding slide: 4 crops, 0:00\n"
    assert printed.out == ""


def test_short_work_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 60.0)
    work()
    monkeypatch.setattr(sys, "stderr", Terminal())
    work()
    assert sys.stderr.getvalue() == capsys.readouterr().err == ""


def test_a_notebook_needs_no_widgets(monkeypatch, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    assert "Encoding slide: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_can_be_turned_off(monkeypatch, capsys, terminal):
    if terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    with displayed(False), displayed(True):
        work()
    settings.verbosity = "warning"
    work()
    with step(1, 2, "Training"):
        work()
    settings.verbosity = "info"
    monkeypatch.setenv("LOCAL_RANK", "1")  # beside the first of several processes
    work()
    assert (sys.stderr.getvalue() if terminal else capsys.readouterr().err) == ""


def test_steps_of_a_command_are_counted(monkeypatch, capsys):
    with step(2, 4, "Training"):
        work()
    assert capsys.readouterr().err == "2/4 Training: 0:00\n"
    monkeypatch.setattr(sys, "stderr", Terminal())
    with step(2, 4, "Training"):
        work()
    bar, told = sys.stderr.getvalue().rsplit("\r", 1)
    assert "2/4 Encoding slide:   0%" in bar
    assert told.strip() == "2/4 Training: 0:00"


def test_a_step_that_fails_is_not_told_as_done(capsys):
    with pytest.raises(ValueError, match="x"), step(1, 1, "Training"):
        raise ValueError("x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (83, "1:23"), (3661, "1:01:01")])
def test_times(seconds, shown):
    assert _progress._clock(seconds) == shown
