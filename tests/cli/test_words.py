import inspect
import logging
import warnings

import pytest
import typer

import sigmma_sc as sg
from sigmma_sc import cli
from sigmma_sc._settings import logger, settings
from sigmma_sc.cli.words import OPTIONS, spoken, with_options
from sigmma_sc.errors import PixelSizeWarning

WITHOUT_ARGUMENT = {
    "--encoder-arg", "--gene", "--he-only", "--help", "--import", "--keep-all", "--label", "--manifest", "--model", "--out",
    "--quiet", "--set", "--skip-failed", "--store", "--tile", "--transcriptome", "--version",
}  # fmt: skip
"""Options that set no argument of Python by themselves."""

FUNCTIONS = (
    sg.SIGMMA, sg.SIGMMA.setup_spatialdata, sg.SIGMMA.train, sg.SIGMMA.predict_expression, sg.Config, sg.get_encoder,
    sg.pp.register, sg.tl.niches, sg.tl.search, sg.io.xenium, sg.datasets.simulate_tissue, sg.benchmark.run, sg.report,
)  # fmt: skip


def options():
    """Every option of every command."""
    group = typer.main.get_command(cli.app)
    found = {name for parameter in group.params for name in parameter.opts}
    for command in group.commands.values():
        for parameter in command.params:
            found.update(name for name in parameter.opts if name.startswith("--"))
    return found


def test_every_option_has_the_argument_that_it_sets():
    arguments = {name for function in FUNCTIONS for name in inspect.signature(function).parameters}
    assert options() - WITHOUT_ARGUMENT == {name for name in OPTIONS.values() if not name.startswith("--set ")}
    assert set(OPTIONS) <= arguments
    assert options() >= WITHOUT_ARGUMENT - {"--help"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_argument_is_named_as_its_option(name):
    assert with_options(f"{name}='a' does not exist.") == f"{OPTIONS[name]}='a' does not exist."
    assert with_options(f"Pass {name}=….") == f"Pass {OPTIONS[name]}=…."
    assert with_options(f"my_{name}=1, x.{name}=1, f({name}=1)") == f"my_{name}=1, x.{name}=1, f({name}=1)"


def test_commands_take_the_place_of_calls():
    assert with_options("Find it with sg.pp.register(sdata).") == "Find it with 'sigmma-sc register'."


def test_warnings_and_messages_are_in_the_words_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with warnings.catch_warnings(record=True) as seen, spoken():
        warnings.simplefilter("always")
        warnings.warn("Pass microns_per_pixel=….", PixelSizeWarning, stacklevel=1)
        warnings.warn("of the user", UserWarning, stacklevel=1)
        logger.info("Pass layer=….")
        settings.verbosity = "error"
        warnings.warn("tile_size=3", PixelSizeWarning, stacklevel=1)
    assert capsys.readouterr().err == "PixelSizeWarning: Pass --microns-per-pixel=….\nPass --layer=….\n"
    assert [str(one.message) for one in seen] == ["of the user"]  # Python shows it as ever
    assert settings.verbosity == "info"
    logger.info("layer=…")
    assert capsys.readouterr().err == "layer=…\n"
