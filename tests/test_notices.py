import logging
import re
import warnings

import pytest

from sigmma_sc import errors, settings
from sigmma_sc._notices import LOGGERS, NOTICES, silenced

TEXTS = {
    r"`torch\.jit\.script` is deprecated": "`torch.jit.script` is deprecated. Please switch.",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "`isinstance(treespec, LeafSpec)` is deprecated, use",
    r"The number of training batches \(\d+\) is smaller than the log": "The number of training batches (1) is smaller "
    "than the logging interval Trainer(log_every_n_steps=10).",
    r"The '\w+' does not have many workers": "The 'train_dataloader' does not have many workers which may be a bottleneck.",
    "The data type .* does not have a Zarr V3 specification": "The data type (U4) does not have a Zarr V3 specification.",
}
OURS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Warning)]


def shown(category, message, module):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with silenced():
            warnings.warn_explicit(message, category, "file.py", 1, module=module)
    return [str(one.message) for one in seen]


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.origin.split(",")[0])
def test_a_known_notice_is_not_shown(notice):
    # As the dependency words it: a pattern that does not fit it fails here.
    text = TEXTS.get(notice.message, notice.message or "'n_jobs' is not a valid key!")
    module = "docrep.decorators" if notice.module else "anywhere"
    assert re.match(notice.message, text)
    assert shown(notice.category, text, module) == []
    settings.verbosity = "debug"
    try:
        assert shown(notice.category, text, module) == [text]
    finally:
        settings.verbosity = "info"


@pytest.mark.parametrize("category", [*OURS, UserWarning, FutureWarning, RuntimeWarning])
def test_other_warnings_are_shown_wherever_they_come_from(category):
    for module in ("lightning.pytorch.trainer", "zarr.core", "numba.core", "anndata", "sigmma_sc.train", "__main__"):
        assert shown(category, "Something is wrong.", module) == ["Something is wrong."]


def test_loggers_of_the_trainer_tell_warnings_alone(capsys):
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger(LOGGERS[0])
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with silenced():
            logger.info("GPU available: False")
            logger.warning("diverged")
        logger.info("TPU available: False")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert heard == ["diverged", "TPU available: False"]
