import numpy as np
import pandas as pd
import pytest

from sigmma_sc.niches.compare import abundance_table


def cohort(rng, growth, n_niches=8):
    """Cells of 6 + 6 donors, Dirichlet-multinomial; the first niche is ``growth`` times as frequent in the second six."""
    base = rng.dirichlet(np.full(n_niches, 3.0))
    rows = []
    for factor in (1.0, growth):
        share = base * np.r_[factor, np.ones(n_niches - 1)]
        rows += [rng.multinomial(1500, rng.dirichlet(50 * share / share.sum())) for _ in range(6)]
    return pd.DataFrame(rows, columns=[str(k) for k in range(n_niches)])


SIX = pd.Series(pd.Categorical(["a"] * 6 + ["b"] * 6))


def test_a_planted_difference_is_found_and_none_where_labels_are_permuted():
    rng = np.random.default_rng(0)
    cells = cohort(rng, 8.0)
    found = abundance_table(cells, SIX, "a").set_index("niche")
    assert found.q_value["0"] < 0.01
    assert (found.q_value.drop("0") > 0.05).all()
    mixed = pd.Series(pd.Categorical(["a", "b"] * 6))
    assert (abundance_table(cells, mixed, "a").q_value > 0.05).all()


@pytest.mark.slow
def test_errors_are_nominal_over_simulated_cohorts():
    rng = np.random.default_rng(0)
    null = [abundance_table(cohort(rng, 1.0), SIX, "a") for _ in range(200)]
    p_values = np.array([found.p_value[0] for found in null])
    # 99.9 % of a binomial of 200 and 0.05: 1 to 22.
    assert 1 <= (p_values < 0.05).sum() <= 22
    assert np.mean([(found.q_value < 0.05).any() for found in null]) < 0.12
    planted = [abundance_table(cohort(rng, 4.0), SIX, "a") for _ in range(100)]
    assert np.mean([found.q_value[0] < 0.05 for found in planted]) > 0.8
    wrong = [(found.q_value[1:] < 0.05).sum() / max(1, (found.q_value < 0.05).sum()) for found in planted]
    assert np.mean(wrong) < 0.12
