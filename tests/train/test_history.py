import json

import pandas as pd

from sigmma_sc.train.history import history_from_json, history_to_json


def test_losses_come_back_to_the_last_bit():
    index = pd.RangeIndex(3, name="epoch")
    history = {"train_loss_epoch": pd.DataFrame({"train_loss_epoch": [0.1 + 0.2, 1 / 3, 2.0]}, index=index)}
    back = history_from_json(json.loads(json.dumps(history_to_json(history))))
    assert back.keys() == history.keys()
    frame = back["train_loss_epoch"]
    assert frame["train_loss_epoch"].tolist() == [0.1 + 0.2, 1 / 3, 2.0]
    assert (frame.index.tolist(), frame.index.name) == ([0, 1, 2], "epoch")
