import base64
import dataclasses
import hashlib
import re

import pandas as pd
import pytest

from sigmma_sc.reporting.page import Contents, html_page

NAME = "</script><b>x</b>&\"'"


@pytest.fixture
def contents():
    frame = pd.DataFrame({NAME: [1.5, float("nan")]}, index=pd.Index([NAME, "b"], name="slide"))
    return Contents(
        title=NAME,
        made="2026-01-01",
        niches={NAME: []},
        markers={},
        groupby=NAME,
        nesting={(NAME, NAME): pd.DataFrame({NAME: [1.0]}, index=[NAME])},
        roles=frame,
        cells=pd.DataFrame({"cells": [2]}, index=pd.Index([NAME], name="slide")),
        registration=[(NAME, {"verdict": NAME, "matrix": [[1]]}, "data:image/png;base64,")],
        losses="data:image/png;base64,",
        retrieval=NAME,
        split="test",
        queries=[],
        reliability=NAME,
        settings={NAME: NAME},
        tile_names=[],
        pictures={},
        slides=[{"name": NAME}],
        genes=[NAME],
        genes_note=NAME,
    )


def test_every_name_stays_text(contents, page_of):
    page = page_of(html_page(contents))
    assert "b" not in {tag for tag, _ in page.elements}
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert page.json["genes"] == [NAME]
    assert "".join(page.texts).count(NAME) >= 12


def test_the_policy_allows_this_script_and_no_request(contents, page_of):
    text = html_page(contents)
    page = page_of(text)
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy
    assert not re.search(r"\bhttps?:|//[a-z]+\.", text.replace(NAME, ""))


def test_a_table_of_reliability_says_how_many_are_not_known(contents, page_of):
    table = pd.DataFrame({"reliability": [0.9, float("nan"), 0.1], "reliability_n_tiles": 5}, index=["A", "B", "C"])
    words = " ".join(page_of(html_page(dataclasses.replace(contents, reliability=table))).texts)
    assert "known for 2 of 3 genes" in words
    assert "not for 1" in words
    assert "0.90" in words
    none = table.assign(reliability=float("nan"))
    words = " ".join(page_of(html_page(dataclasses.replace(contents, reliability=none))).texts)
    assert "known for 0 of 3 genes" in words
