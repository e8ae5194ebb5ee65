import re

import numpy as np
import pandas as pd
import pytest

from sigmma_sc.benchmark import read_config
from sigmma_sc.benchmark.intervals import intervals_table
from sigmma_sc.benchmark.report import _html, _table, plain, write_report
from sigmma_sc.benchmark.scores import results_table, stability_table
from sigmma_sc.benchmark.trial import RankKey

PLAN = {
    "title": "Small",
    "datasets": {
        "d": {
            "simulate": {},
            "splits": ["blocks", "random"],
            "note": "Drawn numbers.",
            "published": {"SIGMMA": {"PCC": "0.7 ± 0.1", "I→T R@5 %": 0.59}},
        },
        "empty": {"simulate": {}},
    },
    "methods": [{"method": "sigmma", "label": "ours"}, {"method": "bleep", "label": "a|b"}],
    "encoder": "stain-stats",
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def report(tmp_path_factory, draw_trial, add_niches):
    """Folder, Markdown and HTML of a report on drawn trials; the first method finds more on the split that leaks."""
    rng = np.random.default_rng(0)
    folder, trials = tmp_path_factory.mktemp("report"), []
    for split in ("blocks", "random"):
        for method in ("ours", "a|b"):
            trials += [draw_trial(rng, method, k, split, n=40, scales=("micro", "macro", "all")) for k in (0, 1)]
    for trial in trials[4:6]:
        trial.ranks[RankKey("image→transcriptome", "all")][:] = 1
    labels, xy = rng.integers(0, 3, 30), rng.normal(size=(30, 2))
    trials[:2] = [add_niches(trial, labels, xy, labels.astype(str)) for trial in trials[:2]]
    tables = []
    for split in ("blocks", "random"):
        of_split = [trial for trial in trials if trial.meta.split == split]
        tables.append(intervals_table(of_split, n_draws=50).assign(dataset="d", split=split))
    stability = stability_table(trials)
    write_report(
        read_config(PLAN),
        trials,
        results_table(trials),
        pd.concat(tables),
        stability,
        folder,
        "the command",
        ["x: No luck."],
    )
    return folder, (folder / "report.md").read_text(), (folder / "report.html").read_text()


def rows_of(text, title):
    """Entries of the first table below a line."""
    lines = text[text.index(title) :].split("\n")
    first = next(k for k, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([entry.strip() for entry in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_what_was_run_is_said(report):
    _, text, page = report
    for part in ("the command", "8 of 12 trials", "0.1 hours", "torch 2.0", "Image encoder: stain-stats", "Seeds 0, 1"):
        assert part in text
        assert part in page
    assert "Drawn numbers. Test tiles 40 to 40 a slide, chance at 5 % 0.050 to 0.050; 10 to 10 training tiles" in text
    assert "## Trials that failed\n\n- x: No luck." in text
    assert "## empty" not in text


def test_tables_hold_the_figures_of_each_method(report):
    _, text, _ = report
    main = rows_of(text, "## d, random")
    assert [row["method"] for row in main] == ["ours", "a\\|b"]
    assert main[0]["I→T R@5 %"] == "1.000 ± 0.000"
    assert main[0]["seeds"] == "2"
    assert main[0]["PCC lookup"] == "–"
    differences = rows_of(text, "Differences from ours:")
    assert differences[0]["PCC ridge, difference"] == "–"
    assert re.fullmatch(r"(\*\*)?[+-]\d\.\d{3} \[.*\](\*\*)?", differences[1]["PCC ridge, difference"])
    scales = rows_of(text, "Mean recall over 5, 10 and 15 % by scale:")
    assert list(scales[0]) == ["method", *(f"{s} {a}" for a in ("I→T", "T→I") for s in ("micro", "macro", "all"))]
    niches = rows_of(text, "Leiden niches by scale:")
    assert niches[0]["method"] == "ours, macro"
    assert niches[0]["ari"] == "1.00"
    assert "Agreement of the niches of two seeds (ARI, mean over 1 pairs): ours macro 1.00." in text


def test_the_gain_of_a_split_that_leaks(report):
    _, text, _ = report
    ours, other = rows_of(text, "## d: leakage of random")
    gain, figure = re.fullmatch(r"([+-]\d\.\d{3}) \((\d\.\d{3})\)", ours["I→T against blocks"]).groups()
    assert figure == "1.000"
    assert 0.7 < float(gain) < 1
    assert set(other) == {"method", "I→T against blocks", "T→I against blocks", "PCC against blocks"}
    assert "leakage of blocks" not in text


def test_published_figures_stand_beside(report):
    _, text, _ = report
    assert rows_of(text, "## d: published") == [{"method": "SIGMMA", "PCC": "0.7 ± 0.1", "I→T R@5 %": "0.590"}]


def test_the_page_needs_nothing_else(report):
    folder, _, page = report
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["d-blocks.png", "d-random.png"]


MARKUP = [
    "<b>bold</b>", "<script>alert(1)</script>", "**a**", "_a_ and __b__", "a*b*c", "`code`", "[a](https://example.org)",
    "![a](figures/../secret.txt)", "a & b &lt; c", "# title", "~~~", "a\\b", "a | b", "two\nlines", "<!-- a -->", "x_1",
]  # fmt: skip


@pytest.mark.parametrize("name", MARKUP)
def test_names_are_shown_as_they_are(tmp_path, name):
    from html.parser import HTMLParser

    class Words(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.words = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.words.append(data)

    frame = pd.DataFrame({"method": [name], name: ["1"]})
    text = f"# {plain(name)}\n\n- {plain(name)}\n\n{_table(frame)}\n"
    page = Words()
    page.feed(_html(text, name, tmp_path))
    assert page.tags == [
        "html", "meta", "title", "style", "body", "h1", "ul", "li", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td",
    ]  # fmt: skip
    shown = [words for words in page.words if words.strip()]
    assert shown[0] == name
    assert "".join(shown[2:]).count(" ".join(name.split())) == 4


@pytest.mark.parametrize(
    "source",
    [
        "figures/../secret.txt", "figures/..%2Fsecret.txt", "../secret.txt", "{folder}/secret.txt", "file://{folder}/secret.txt",
        "https://example.org/a.png", "figures/missing.png", "figures/figures/a.png",
    ],
)  # fmt: skip
def test_a_note_embeds_no_other_file(tmp_path, source):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "a b.png").write_bytes(b"picture")
    (tmp_path / "secret.txt").write_text("secret")
    note = f"![a *note*](<{source.format(folder=tmp_path)}>)\n\n<img src='{source}'>\n\n![ours](figures/a%20b.png)"
    page = _html(note, "t", figures)
    assert page.count("<img") == 1
    assert 'src="data:image/png;base64,cGljdHVyZQ==" alt="ours"' in page
    assert "c2VjcmV0" not in page  # "secret" in base64
    assert not re.search(r'(src|href)="(?!data:)', page)
