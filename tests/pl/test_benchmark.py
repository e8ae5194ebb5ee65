import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.errors import SetupError

mpl.use("agg")


def table():
    rows = [
        {"method": m, "metric": metric, "value": v, "low": v - 0.1, "high": v + 0.2, "dataset": "d", "split": "blocks"}
        for m, v in (("ours", 0.6), ("theirs", 0.4))
        for metric in ("mean recall image→transcriptome", "mean recall transcriptome→image", "pcc default")
        if (m, metric) != ("theirs", "mean recall image→transcriptome")
    ]
    return pd.DataFrame(rows)


def test_a_panel_a_metric_and_a_row_a_method(tmp_path):
    axes = sg.pl.benchmark(table(), title="d, blocks", save=tmp_path / "f.png", show=False)
    assert len(axes) == 3
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["ours", "theirs"]
    points = [[line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o"] for ax in axes]
    assert points == [[[0.6, 0]], [[0.6, 0], [0.4, 1]], [[0.6, 0], [0.4, 1]]]
    assert [text.get_text() for text in axes[0].texts] == ["not defined"]
    assert axes[0].get_ylim() == (1.5, -0.5)
    bars = [line.get_xdata() for line in axes[1].lines if line.get_marker() != "o" and len(set(line.get_ydata())) == 1]
    np.testing.assert_allclose(bars, [[0.5, 0.8], [0.3, 0.6]])
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_one_data_set_at_a_time():
    both = pd.concat([table(), table().assign(dataset="e")])
    with pytest.raises(SetupError, match="several of dataset: d, e"):
        sg.pl.benchmark(both)
    with pytest.raises(SetupError, match="no row"):
        sg.pl.benchmark(both[:0])
