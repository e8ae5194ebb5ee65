"""The Lightning side of training."""

from types import SimpleNamespace

from sigmma_sc.config import Config
from sigmma_sc.nn.towers import Towers
from sigmma_sc.nn.trainable import TrainableEncoder
from sigmma_sc.train.plan import AlignmentPlan


def test_biases_norms_and_temperatures_are_not_decayed(encoder):
    trainable = TrainableEncoder(encoder(), (2, 1), (16, 16))
    towers = Towers(6, 5, (2, 1), ("meso", "macro"), Config(n_latent=4, learn_temperature=True), trainable)
    plan = AlignmentPlan(towers, lr=1e-3, encoder_lr=1e-4, weight_decay=0.1, edge_temperatures=(1.0, 1.0))
    plan._trainer = SimpleNamespace(estimated_stepping_batches=10)
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    found = {}
    for group in plan.configure_optimizers()["optimizer"].param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = group["initial_lr"], group["weight_decay"]
    assert found["temperature.log"] == (1e-3, 0.0)
    assert found["image_heads.0.linear.weight"] == (1e-3, 0.1)
    assert found["image_heads.0.linear.bias"] == (1e-3, 0.0)
    assert found["encoder.encoder.module.gain"] == (1e-4, 0.0)
    assert found.keys() == {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    for name, parameter in towers.named_parameters():
        assert found[name][1] == (0.1 if parameter.ndim > 1 else 0.0)
