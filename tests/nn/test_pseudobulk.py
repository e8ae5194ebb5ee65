import torch

from sigmma_sc.nn.pseudobulk import PseudobulkTower


def test_standardised_profiles_at_every_scale():
    profiles = torch.tensor([[0.0, 2.0, 5.0], [4.0, 2.0, 7.0]])
    tower = PseudobulkTower(3, 2, dropout=0.5)
    tower.fit(profiles)
    tower.eval()
    cells, tiles = tower({"profiles": profiles})
    assert cells == []
    assert len(tiles) == 2
    for scale in tiles:
        torch.testing.assert_close(scale, torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
    assert (tower.n_output, tower.embeds_cells) == (3, False)


def test_genes_are_dropped_in_training_alone():
    torch.manual_seed(0)
    tower = PseudobulkTower(400, 1, dropout=0.5)
    tower.fit(torch.randn(50, 400))
    profiles = torch.full((1, 400), 9.0)
    _, (dropped,) = tower({"profiles": profiles})
    assert 100 < (dropped == 0).sum() < 300
    _, (kept,) = tower.eval()({"profiles": profiles})
    assert (kept != 0).all()
