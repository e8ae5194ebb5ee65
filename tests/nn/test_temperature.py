import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.nn.towers import Towers

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_a_learned_temperature_moves_and_is_kept(tiny, encoder, tmp_path):
    fixed, learned = (fitted(tiny, encoder(), 3, learn_temperature=learn) for learn in (False, True))
    assert all(float(t) == pytest.approx(0.07) for t in fixed.module.temperatures.values())
    found = {s: float(t) for s, t in learned.module.temperatures.items()}
    assert all(abs(t - 0.07) > 1e-4 for t in found.values())
    assert len(set(found.values())) == 3
    learned.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    assert {s: float(t) for s, t in loaded.module.temperatures.items()} == found


def test_a_learned_temperature_stays_within_its_bounds_and_comes_back(tiny, encoder, monkeypatch):
    def pull(sign):
        monkeypatch.setattr(Towers, "losses", lambda self, out: {s: sign * tau for s, tau in self.temperatures.items()})

    for sign, start, bound in ((1, 0.0101, 0.01), (-1, 0.49, 0.5)):
        pull(sign)
        model = SIGMMA(tiny, encoder(), n_latent=8, learn_temperature=True, temperature=start)
        model.train(max_epochs=2, lr=0.5, **QUIET)
        assert all(float(t) == pytest.approx(bound) for t in model.module.temperatures.values())
    pull(1)
    model.train(max_epochs=1, lr=0.01, **QUIET)
    assert all(0.45 < float(t) < 0.4999 for t in model.module.temperatures.values())
