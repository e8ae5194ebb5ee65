"""The report of a benchmark: Markdown with figures, and the same as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd

from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec
from sigmma_sc.benchmark.output import FIGURES
from sigmma_sc.benchmark.scores import DIRECTIONS
from sigmma_sc.benchmark.trial import Trial
from sigmma_sc.metrics.retrieval import PERCENTS
from sigmma_sc.tissue.split import get_split

if TYPE_CHECKING:
    from markdown_it.token import Token

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}img{max-width:100%}
code{background:#f3f3f3;padding:.1rem .3rem}pre{background:#f3f3f3;padding:.6rem;overflow-x:auto}"""

TILES = {"test": "test", "val": "validation"}

ARROWS = dict(zip(DIRECTIONS, ("I→T", "T→I"), strict=True))


def write_report(
    plan: BenchmarkConfig,
    trials: Sequence[Trial],
    results: pd.DataFrame,
    intervals: pd.DataFrame,
    stability: pd.DataFrame,
    out: Path,
    command: str,
    failed: Sequence[str],
) -> None:
    """Write ``report.md`` with ``figures/``, and ``report.html``, to a new folder."""
    parts = [f"# {plain(plan.title)}", _how(plan, trials, command)]
    figures = out / FIGURES
    figures.mkdir()
    for data in plan.datasets:
        for split in data.splits:
            of_section = _rows(results, data, split)
            if len(of_section):
                stable = _rows(stability, data, split)
                parts += _section(
                    data, split, of_section, _rows(intervals, data, split), stable, figures, TILES[plan.score]
                )
        for split in data.splits:
            if get_split(split).leaks:
                parts += _leakage(data, split, results)
        parts += _published(data)
    if failed:
        parts += ["## Trials that failed", "\n".join(f"- {plain(line)}" for line in failed)]
    text = "\n\n".join(parts) + "\n"
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(_html(text, plan.title, figures))


def figure_name(data: DataSpec, split: str) -> str:
    """Name of the file with the figure of a data set and a split."""
    return f"{data.name}-{split}.png".replace(" ", "_")


def plain(text: object) -> str:
    """Markdown that shows a text as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>&~#|])", r"\\\1", " ".join(str(text).split()))


def _rows(table: pd.DataFrame, data: DataSpec, split: str) -> pd.DataFrame:
    return table[(table.dataset == data.name) & (table.split == split)]


def _how(plan: BenchmarkConfig, trials: Sequence[Trial], command: str) -> str:
    packages = {", ".join(map(" ".join, trial.meta.versions.items())) for trial in trials}
    hours = sum(trial.meta.seconds for trial in trials) / 3600
    encoder = plan.encoder if isinstance(plan.encoder, str) else (plan.encoder or {}).get("name", "each method's own")
    tuned = f" Each method chose among {len(plan.budget())} settings on validation tiles." if plan.tune else ""
    # A fence longer than any in the command.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return (
        f"{fence}bash\n{command}\n{fence}\n\n"
        f"{date.today()}, {platform.machine()}, Python {platform.python_version()}, {'; '.join(sorted(packages))}. "
        f"Image encoder: {plain(encoder)}. Seeds "
        f"{', '.join(map(str, plan.seeds))}; each draws split, weights and batches anew. {len(trials)} of {len(plan.trials())} trials, "
        f"{hours:.1f} hours of work in all.{tuned}\n\n"
        f"Retrieval ranks the {TILES[plan.score]} tiles of one slide (the pool); ties count against the query. R@p % is the share of queries whose partner "
        "is among the best p %, mean ± SD over seeds. PCC and MSE are of the 50 most variable genes of the training tiles, predicted from "
        "the image embedding: `ridge` by the default protocol, `HEST` by HEST-1k's head, `lookup` by the mean of the 50 training "
        "tiles whose transcriptome embedding is nearest (BLEEP's inference), `auto` by the best for each gene on the validation tiles "
        '(`predict_expression(method="auto")`). Brackets are 95 % intervals of a bootstrap over spatial '
        "blocks, differences are paired; bold ones exclude zero. Per gene: `genes.parquet`."
    )


def _section(
    data: DataSpec,
    split: str,
    results: pd.DataFrame,
    intervals: pd.DataFrame,
    stability: pd.DataFrame,
    figures: Path,
    scored: str,
) -> list[str]:
    from sigmma_sc import pl

    pools = results.dropna(subset="n_test").groupby(["seed", "slide"]).n_test.first().astype(int)
    retrieved = results[results.task == "retrieval"]
    chance = retrieved[retrieved.metric == f"recall@5% {DIRECTIONS[0]}"].chance
    levels = f", chance at 5 % {chance.min():.3f} to {chance.max():.3f}" if len(chance) else ""
    title = f"{data.name}, {split}"
    figure = figures / figure_name(data, split)
    pl.benchmark(intervals, title=title, save=figure, show=False)
    parts = [
        f"## {plain(title)}",
        f"{data.note} {scored.capitalize()} tiles {pools.min()} to {pools.max()} a slide{levels}; {int(results.n_train.min())} to "
        f"{int(results.n_train.max())} training tiles of the grid.".strip(),
        _main_table(results, intervals),
        _differences(intervals),
        f"![{plain(title)}: mean with 95 % intervals]({FIGURES}/{quote(figure.name)})",
    ]
    scales = retrieved[retrieved.metric.str.startswith("mean recall")]
    several = scales.groupby("method").scale.transform("nunique") > 1
    if several.any():
        table = scales[several]
        arrows = table.metric.str.split().str[-1].map(ARROWS)
        table = table.assign(column=table.scale + " " + arrows)
        parts += ["Mean recall over 5, 10 and 15 % by scale:", _pivot(table, "column")]
    niches = results[results.task == "niches"]
    if len(niches):
        named = niches.assign(method=niches.method + ", " + niches.scale)
        parts += ["Leiden niches by scale:", _pivot(named, "metric", 2)]
    if len(stability):
        agreements = ", ".join(f"{plain(row.method)} {row.scale} {row.ari:.2f}" for row in stability.itertuples())
        pairs = stability.n_pairs.max()
        parts.append(f"Agreement of the niches of two seeds (ARI, mean over {pairs} pairs): {agreements}.")
    return parts


def _main_table(results: pd.DataFrame, intervals: pd.DataFrame) -> str:
    columns: dict[str, str] = {}
    for direction, arrow in ARROWS.items():
        for p in PERCENTS:
            columns[f"recall@{p}% {direction}"] = f"{arrow} R@{p} %"
    columns |= {
        "pcc default": "PCC ridge",
        "mse default": "MSE ridge",
        "pcc hest": "PCC HEST",
        "pcc lookup": "PCC lookup",
        "pcc auto": "PCC auto",
    }
    ridge = results[results["head"] == "default"]
    genes = ridge[ridge.metric == "pcc_sd_over_genes"].groupby("method").value.mean()
    rows = []
    for method, of_method in intervals.groupby("method", sort=False):
        values = of_method.set_index("metric")
        row = {"method": method}
        for metric, column in columns.items():
            row[column] = _pm(values.value.get(metric, np.nan), values.sd.get(metric, np.nan))
        row["SD over genes"] = _number(genes.get(method, np.nan))
        row["seeds"] = str(int(of_method.n_seeds.max()))
        rows.append(row)
    mean = ridge[ridge.metric == "mse_gene_mean"].value.mean()
    return _table(pd.DataFrame(rows)) + f"\n\nMSE of each gene's training mean, for comparison: {mean:.3f}."


def _differences(intervals: pd.DataFrame) -> str:
    metrics = {f"mean recall {direction}": f"{arrow} mean recall" for direction, arrow in ARROWS.items()}
    metrics["pcc default"] = "PCC ridge"
    rows = []
    for method, of_method in intervals.groupby("method", sort=False):
        values, row = of_method.set_index("metric"), {"method": method}
        for metric, name in metrics.items():
            row[name], row[f"{name}, difference"] = "–", "–"
            if metric in values.index:
                v = values.loc[metric]
                row[name] = _interval(v.value, v.low, v.high)
                row[f"{name}, difference"] = _difference(v.difference, v.difference_low, v.difference_high)
        rows.append(row)
    bold = [f"{name}, difference" for name in metrics.values()]
    return f"Differences from {plain(rows[0]['method'])}:\n\n" + _table(pd.DataFrame(rows), bold)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(value) else "–"


def _difference(value: float, low: float, high: float) -> str:
    """A difference with its interval, bold where that excludes zero."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _leakage(data: DataSpec, leaking: str, results: pd.DataFrame) -> list[str]:
    """What each method gains from a split that leaks, over those that do not."""
    honest = [split for split in data.splits if not get_split(split).leaks]
    if not honest:
        return []
    of_data = results[results.dataset == data.name]
    only = of_data.groupby(["method", "metric"]).scale.transform("nunique") == 1
    whole = only | (of_data.scale == "all")
    recall = of_data[of_data.metric.str.startswith("mean recall") & whole]
    pcc = of_data[(of_data.metric == "pcc") & (of_data["head"] == "default")]
    compared = pd.concat([recall, pcc])
    mean = compared.groupby(["method", "metric", "split"], sort=False).value.mean().unstack("split")
    rows = []
    for method, of_method in mean.groupby(level="method", sort=False):
        row = {"method": method}
        for (_, metric), figure in of_method.iterrows():
            for split in honest:
                name = f"{ARROWS.get(metric.split()[-1], 'PCC')} against {split}"
                gain = figure[leaking] - figure[split]
                row[name] = f"{gain:+.3f} ({figure[leaking]:.3f})" if np.isfinite(gain) else "–"
        rows.append(row)
    text = (
        f"What `{leaking}` gives over a split that does not leak: the difference, and in parentheses the figure of `{leaking}`. Pools "
        "differ in size. Neighbours of test tiles are in training; the gain is what other tissue would not give."
    )
    return [f"## {plain(data.name)}: leakage of {leaking}", text, _table(pd.DataFrame(rows).fillna("–"))]


def _published(data: DataSpec) -> list[str]:
    if not data.published:
        return []
    table = pd.DataFrame.from_dict(data.published, orient="index").rename_axis("method").reset_index()
    text = (
        "Figures of the paper (arXiv 2511.15464, Tables 1 to 4) for the same set. Splits, pools and genes of the paper are not "
        "public: they stand beside ours, not on the same footing."
    )
    table = table.map(lambda value: f"{value:.3f}" if isinstance(value, float) and np.isfinite(value) else value)
    return [f"## {plain(data.name)}: published", text, _table(table.fillna("–"))]


def _pivot(table: pd.DataFrame, columns: str, digits: int = 3) -> str:
    mean = table.groupby(["method", columns], sort=False).value.mean().unstack(columns)
    return _table(mean.map(lambda v: _number(v, digits)).reset_index())


def _table(frame: pd.DataFrame, bold: Sequence[str] = ()) -> str:
    """A table in Markdown; columns in ``bold`` may hold markup of ours."""
    columns = [plain(column) for column in frame.columns]
    entries = []
    for name in frame.columns:
        values = frame[name].astype(str)
        entries.append(values.tolist() if name in bold else values.map(plain).tolist())
    rows = [columns, ["---"] * len(columns), *zip(*entries, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _pm(value: float, sd: float) -> str:
    return _number(value) + (f" ± {sd:.3f}" if np.isfinite(sd) and np.isfinite(value) else "")


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _html(text: str, title: str, figures: Path) -> str:
    """The report with its figures inside; of other images and of HTML, it shows the text."""
    from markdown_it import MarkdownIt

    drawn = {f"{FIGURES}/{path.name}": path for path in figures.iterdir()}

    def image(renderer: object, tokens: Sequence[Token], position: int, *_: object) -> str:
        token = tokens[position]
        path = drawn.get(unquote(str(token.attrGet("src"))))
        words = html.escape(token.content)
        if path is None:
            return words
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{words}">'

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", image)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"<body>{markdown.render(text)}</body></html>\n"
    )
