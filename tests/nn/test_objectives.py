import numpy as np
import pytest
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.nn import objectives
from sigmma_sc.nn.objectives import info_nce, register_objective


def test_info_nce_equals_the_formula_in_float64(rng):
    image, transcriptome = rng.normal(size=(2, 7, 5))
    unit_i, unit_s = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image, transcriptome))
    loss = 0.0
    for i in range(7):
        for a, b in ((unit_i, unit_s), (unit_s, unit_i)):
            similar = np.exp(a[i] @ b.T / 0.07)
            loss -= 0.5 * np.log(similar[i] / similar.sum()) / 7
    got = info_nce(torch.from_numpy(image), torch.from_numpy(transcriptome), 0.07)
    np.testing.assert_allclose(got.item(), loss, rtol=1e-12)


def test_info_nce_of_what_cannot_be_told_apart_is_ln_batch():
    same = torch.ones(16, 4)
    assert abs(info_nce(same, same, 0.07).item() - np.log(16)) < 1e-5


def test_gradient_of_info_nce_is_that_of_the_formula(rng):
    image, cells = (torch.from_numpy(z).requires_grad_() for z in rng.normal(size=(2, 5, 4)))
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    info_nce(image, cells, tau).backward()

    def by_hand(image, cells, tau):
        unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image, cells)]
        s = np.exp(unit[0] @ unit[1].T / tau)
        return -0.5 * (np.log(np.diag(s) / s.sum(0)) + np.log(np.diag(s) / s.sum(1))).mean()

    values, step = [image.detach().numpy(), cells.detach().numpy(), 0.2], 1e-6
    for which, tensor in enumerate((image, cells)):
        for at in np.ndindex(5, 4):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() if isinstance(v, np.ndarray) else v for v in values]
                moved[which][at] += sign * step
                ends.append(by_hand(*moved))
            assert float(tensor.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)
    slope = (by_hand(*values[:2], 0.2 + step) - by_hand(*values[:2], 0.2 - step)) / (2 * step)
    assert float(tau.grad) == pytest.approx(slope, abs=1e-6)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    return objectives.OBJECTIVES


def distance(image, transcriptome, temperature):
    return (image - transcriptome).pow(2).mean() / temperature


def test_an_objective_of_ones_own_is_registered(registry):
    register_objective("distance", distance)
    register_objective("distance", distance)  # a cell of a notebook, run again
    assert registry == {"infonce": info_nce, "distance": distance}


@pytest.mark.parametrize(
    ("name", "objective", "words"),
    [
        ("infonce", distance, "objective='infonce' is registered already, sigmma_sc.nn.objectives.info_nce"),
        ("a b", distance, "objective='a b' must consist of"),
        (
            "mine",
            lambda image, transcriptome: 0,
            "fails for embeddings .* TypeError.*image, transcriptome and temperature",
        ),
        ("mine", "distance", "fails for embeddings"),
        ("mine", lambda *_: None, "gives None for embeddings"),
        ("mine", lambda *_: 1.0, "gives 1.0 for embeddings.*a tensor with a gradient"),
        ("mine", lambda image, *_: image.mean(dim=1), "Return one finite number"),
        ("mine", lambda image, *_: image.detach().mean(), "a tensor with a gradient"),
        ("mine", lambda image, *_: image.mean() * torch.nan, "Return one finite number"),
    ],
)
def test_what_is_no_objective_is_refused(registry, name, objective, words):
    with pytest.raises(SetupError, match=words):
        register_objective(name, objective)
    assert list(registry) == ["infonce"]
