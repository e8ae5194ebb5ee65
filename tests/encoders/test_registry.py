from sigmma_sc.encoders.registry import list_encoders


def test_list():
    table = list_encoders()
    assert set(table.index) == {
        *("stain-stats", "resnet50", "kaiko-vits16", "lunit-vits16", "uni", "uni2-h", "h-optimus-0", "h0-mini"),
        *("virchow2", "phikon-v2", "conch", "clip", "plip", "omiclip"),
    }
    assert table.index.name == "name"
    assert table.loc["uni", ["dim", "licence", "gated"]].tolist() == [1024, "CC-BY-NC-ND-4.0", True]
    assert table.loc["h-optimus-0", "mean"] == (0.707223, 0.578729, 0.703617)
    assert table.loc["resnet50", ["dim", "gated"]].tolist() == [2048, False]
    assert table.loc["uni2-h", "page"] == "https://huggingface.co/MahmoodLab/UNI2-h"
    assert table.loc["virchow2", "pooling"] == table.loc["h0-mini", "pooling"] == "class token, mean of patch tokens"
    assert table.index[table["gated"]].tolist() == ["uni", "uni2-h", "h-optimus-0", "h0-mini", "virchow2", "conch", "omiclip"]  # fmt: skip
    assert not table.isna().any(axis=None)
