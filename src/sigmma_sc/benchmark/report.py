"""The report of a benchmark: Markdown with figures, and the same as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import platform
import re
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc._files import fresh_file, fresh_folder
from sigmma_sc.benchmark.scores import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sigmma_sc.benchmark.config import BenchmarkConfig, DataSpec
    from sigmma_sc.benchmark.trial import Cell

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}img{max-width:100%}
code{background:#f3f3f3;padding:.1rem .3rem}pre{background:#f3f3f3;padding:.6rem;overflow-x:auto}"""

TILES = {"test": "test", "val": "validation"}

ARROWS = dict(zip(DIRECTIONS, ("I→T", "T→I"), strict=True))


def write_report(
    plan: BenchmarkConfig,
    cells: Sequence[Cell],
    results: pd.DataFrame,
    intervals: pd.DataFrame,
    stability: pd.DataFrame,
    out: Path,
    command: str,
    failed: Sequence[str],
) -> None:
    """Write ``report.md`` with ``figures/``, and ``report.html``."""
    parts = [f"# {plan.title}", _how(plan, cells, command)]
    with fresh_folder(out / "figures") as figures:
        for data in plan.datasets:
            for split in data.splits:
                one = results[(results.dataset == data.name) & (results.split == split)]
                if len(one):
                    mine = intervals[(intervals.dataset == data.name) & (intervals.split == split)]
                    parts += _section(data, split, one, mine, stability, figures, TILES[plan.score])
            parts += _leakage(data, results) + _published(data)
        if failed:
            parts += ["## Cells that failed", "\n".join(f"- {line}" for line in failed)]
        text = "\n\n".join(parts) + "\n"
        page = _html(text, plan.title, figures)
    for name, content in (("report.md", text), ("report.html", page)):
        with fresh_file(out / name) as fresh:
            fresh.write_text(content)


def _how(plan: BenchmarkConfig, cells: Sequence[Cell], command: str) -> str:
    versions = "; ".join(sorted({", ".join(f"{k} {v}" for k, v in c.meta["versions"].items()) for c in cells}))
    hours = sum(c.meta["seconds"] for c in cells) / 3600
    encoder = plan.encoder if isinstance(plan.encoder, str) else (plan.encoder or {}).get("name", "each method's own")
    tuned = f" Each method chose among {len(plan.budget())} settings on validation tiles." if plan.tune else ""
    return (
        f"```bash\n{command}\n```\n\n"
        f"{date.today()}, {platform.machine()}, Python {platform.python_version()}, {versions}. Image encoder: {encoder}. Seeds "
        f"{', '.join(map(str, plan.seeds))}; each draws split, weights and batches anew. {len(cells)} of {len(plan.cells())} cells, "
        f"{hours:.1f} hours of work in all.{tuned}\n\n"
        f"Retrieval ranks the {TILES[plan.score]} tiles of one slide (the pool); ties count against the query. R@p % is the share of queries whose partner "
        "is among the best p %, mean ± SD over seeds. PCC and MSE are of the 50 most variable genes of the training tiles, predicted from "
        "the image embedding: `ridge` by the default protocol, `HEST` by HEST-1k's head, `lookup` by the mean of the 50 training "
        "tiles whose transcriptome embedding is nearest (BLEEP's inference). Brackets are 95 % intervals of a bootstrap over spatial "
        "blocks, differences are paired; bold ones exclude zero. Per gene: `genes.parquet`."
    )


def _section(
    data: DataSpec,
    split: str,
    one: pd.DataFrame,
    intervals: pd.DataFrame,
    stability: pd.DataFrame,
    figures: Path,
    scored: str,
) -> list[str]:
    from sigmma_sc import pl

    pools = one.dropna(subset="n_test").groupby(["seed", "slide"]).n_test.first().astype(int)
    retrieved = one[one.task == "retrieval"]
    chance = retrieved[retrieved.metric == f"recall@5% {DIRECTIONS[0]}"].chance
    levels = f", chance at 5 % {chance.min():.3f} to {chance.max():.3f}" if len(chance) else ""
    title = f"{data.name}, {split}"
    figure = figures / f"{data.name}-{split}.png".replace(" ", "_")
    pl.benchmark(intervals, title=title, save=figure, show=False)
    parts = [
        f"## {title}",
        f"{data.note} {scored.capitalize()} tiles {pools.min()} to {pools.max()} a slide{levels}; {int(one.n_train.min())} to "
        f"{int(one.n_train.max())} training tiles of the grid.".strip(),
        _main_table(one, intervals),
        _differences(intervals),
        f"![{title}: mean with 95 % intervals](figures/{figure.name})",
    ]
    scales = retrieved[retrieved.metric.str.startswith("mean recall")]
    several = scales.groupby("method").scale.transform("nunique") > 1
    if several.any():
        table = scales[several].assign(what=lambda t: t.scale + " " + t.metric.str.split().str[-1].map(ARROWS))
        parts += ["Mean recall over 5, 10 and 15 % by scale:", _pivot(table, "what")]
    niches = one[one.task == "niches"]
    if len(niches):
        named = niches.assign(method=niches.method + ", " + niches.scale)
        parts += ["Leiden niches by scale:", _pivot(named, "metric", 2)]
        stable = (
            stability[(stability.dataset == data.name) & (stability.split == split)] if len(stability) else stability
        )
        if len(stable):
            told = ", ".join(f"{r.method} {r.scale} {r.ari:.2f}" for r in stable.itertuples())
            parts.append(f"Agreement of the niches of two seeds (ARI, mean over {stable.n_pairs.max()} pairs): {told}.")
    return parts


def _main_table(one: pd.DataFrame, intervals: pd.DataFrame) -> str:
    columns: dict[str, str] = {}
    for direction, arrow in ARROWS.items():
        columns |= {f"recall@{p}% {direction}": f"{arrow} R@{p} %" for p in (5, 10, 15)}
    columns |= {
        "pcc default": "PCC ridge",
        "mse default": "MSE ridge",
        "pcc hest": "PCC HEST",
        "pcc lookup": "PCC lookup",
    }
    genes = one[(one.metric == "pcc_sd_over_genes") & (one["head"] == "default")].groupby("method").value.mean()
    rows = []
    for method, own in intervals.groupby("method", sort=False):
        values = own.set_index("metric")
        row = {"method": method}
        for metric, column in columns.items():
            row[column] = _pm(values.value.get(metric, np.nan), values.sd.get(metric, np.nan))
        rows.append({**row, "SD over genes": _number(genes.get(method, np.nan)), "seeds": str(int(own.n_seeds.max()))})
    mean = one[(one.metric == "mse_gene_mean") & (one["head"] == "default")].value.mean()
    return _table(pd.DataFrame(rows)) + f"\n\nMSE of each gene's training mean, for comparison: {mean:.3f}."


def _differences(intervals: pd.DataFrame) -> str:
    metrics = {f"mean recall {d}": f"{a} mean recall" for d, a in ARROWS.items()} | {"pcc default": "PCC ridge"}
    rows = []
    for method, own in intervals.groupby("method", sort=False):
        values, row = own.set_index("metric"), {"method": method}
        for metric, name in metrics.items():
            if metric not in values.index:
                row |= {name: "–", f"{name}, difference": "–"}
                continue
            v = values.loc[metric]
            row[name] = f"{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" if np.isfinite(v.value) else "–"
            told = f"{v.difference:+.3f} [{v.difference_low:+.3f}, {v.difference_high:+.3f}]"
            sure = v.difference_low > 0 or v.difference_high < 0
            row[f"{name}, difference"] = "–" if not np.isfinite(v.difference) else f"**{told}**" if sure else told
        rows.append(row)
    return f"Differences from {rows[0]['method']}:\n\n" + _table(pd.DataFrame(rows))


def _leakage(data: DataSpec, results: pd.DataFrame) -> list[str]:
    """What each method gains from a split that leaks."""
    honest = [split for split in data.splits if split != "random"]
    if "random" not in data.splits or not honest:
        return []
    mine = results[results.dataset == data.name]
    kept = mine[mine.metric.str.startswith("mean recall") & (mine.scale.isin(["all"]) | _only_scale(mine))]
    kept = pd.concat([kept, mine[(mine.metric == "pcc") & (mine["head"] == "default")]])
    mean = kept.groupby(["method", "metric", "split"], sort=False).value.mean().unstack("split")
    rows = []
    for method, own in mean.groupby(level="method", sort=False):
        row = {"method": method}
        for metric in own.index.get_level_values("metric"):
            for split in honest:
                v = own.loc[(method, metric)]
                name = f"{ARROWS.get(metric.split()[-1], 'PCC')} against {split}"
                gain = v["random"] - v[split]
                row[name] = f"{gain:+.3f} ({v['random']:.3f})" if np.isfinite(gain) else "–"
        rows.append(row)
    text = (
        "What a random split of tiles gives over an honest one: the difference, and in parentheses the figure of the random split. Pools "
        "differ in size. Neighbours of test tiles stand in training; the gain is what other tissue would not give."
    )
    return [f"## {data.name}: leakage", text, _table(pd.DataFrame(rows).fillna("–"))]


def _only_scale(results: pd.DataFrame) -> pd.Series:
    return results.groupby(["method", "metric"]).scale.transform("nunique") == 1


def _published(data: DataSpec) -> list[str]:
    if not data.published:
        return []
    table = pd.DataFrame.from_dict(data.published, orient="index").rename_axis("method").reset_index()
    text = (
        "Figures of the paper (arXiv 2511.15464, Tables 1 to 4) for the same set. Splits, pools and genes of the paper are not "
        "public: they stand beside ours, not on the same footing."
    )
    table = table.map(lambda v: f"{v:.3f}" if isinstance(v, float) and np.isfinite(v) else v)
    return [f"## {data.name}: published", text, _table(table.fillna("–"))]


def _pivot(table: pd.DataFrame, columns: str, digits: int = 3) -> str:
    mean = table.groupby(["method", columns], sort=False).value.mean().unstack(columns)
    return _table(mean.map(lambda v: _number(v, digits)).reset_index())


def _table(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _pm(value: float, sd: float) -> str:
    return _number(value) + (f" ± {sd:.3f}" if np.isfinite(sd) and np.isfinite(value) else "")


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _html(text: str, title: str, figures: Path) -> str:
    """The report with its figures inside."""
    from markdown_it import MarkdownIt

    def inside(found: re.Match) -> str:
        data = base64.b64encode((figures / found.group(1)).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="figures/([^"]+)"', inside, MarkdownIt("commonmark").enable("table").render(text))
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><body>{body}</body></html>\n'
