"""Task 1: how well a linear probe on tile embeddings predicts expression (paper, section 6; HEST-1k's protocol).

Whatever is fitted or chosen (genes, library size, scaler, PCA, penalty, gene means) sees the training tiles only.
Features are standardised, then reduced by PCA; the two protocols differ in the target and the head:

``default``
    log1p of counts scaled to the median total of the training tiles; ridge with an intercept, the penalty of each gene
    chosen among :data:`ALPHAS` by leave-one-out error on the training tiles (closed form). The project's choice.
``hest``
    HEST-1k's: log1p of raw pooled counts; ``Ridge(solver="lsqr", fit_intercept=False, max_iter=1000)`` with
    alpha = 100 / (components × genes predicted). PCA features have mean 0, so without an intercept predictions average
    0: the MSE contains the squared mean of the gene, and tells little beside that of the gene-mean predictor.

HEST is mahmoodlab/HEST (Jaume et al., NeurIPS 2024): the head in ``src/hest/bench/trainer.py``, scaler and PCA in
``src/hest/bench/benchmark.py``, the log in ``src/hest/bench/st_dataset.py``, genes by ``get_k_genes`` of
``src/hest/utils.py``. HEST chooses its genes likewise, by scanpy on log1p of raw counts, but on training and test spots
together, after dropping controls and genes seen in under 10 % of a sample's spots.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sigmma_sc._checks import require_choice, require_positive
from sigmma_sc.errors import SetupError

ALPHAS = np.logspace(-2, 6, 17)
"""Ridge penalties that the default protocol chooses among."""

CONSTANT = 1e-12
"""A range below this share of the largest value is rounding: the values are constant and have no correlation."""

Counts: TypeAlias = ArrayLike | sparse.sparray | sparse.spmatrix


def expression_probe(
    train_x: ArrayLike,
    train_counts: Counts,
    test_x: ArrayLike,
    test_counts: Counts,
    genes: Sequence[str],
    *,
    protocol: Literal["default", "hest"] = "default",
    n_genes: int = 50,
    n_components: int = 256,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the pooled expression of test tiles from their embeddings, gene by gene.

    Parameters
    ----------
    train_x, test_x
        ``(n, d)`` and ``(m, d)`` tile embeddings.
    train_counts, test_counts
        ``(n, g)`` and ``(m, g)`` raw counts summed over the cells of each tile, dense or sparse.
    genes
        The ``g`` gene names, all different.
    protocol
        ``"default"`` or ``"hest"``, see the top of this module.
    n_genes
        Highly variable genes to predict, chosen on the training tiles' log expression by
        :func:`scanpy.pp.highly_variable_genes` (flavor ``seurat``); fewer if fewer vary over the training tiles.
    n_components
        Components of the PCA, at most; there are never more than ``min(d, n - 1)``.
    groups
        ``(m,)`` slide of each test tile, scored apart. None: all are one slide, named ``"all"``.
    seed
        For the randomised solver of the PCA, used on large inputs.

    Returns
    -------
    One row per slide and gene, indexed by gene in the order given: ``slide``; ``pcc``, Pearson across the slide's
    test tiles, NaN if the gene or its prediction is constant there (a single tile always is); ``mse``;
    ``mse_gene_mean``, the error of predicting the gene's training mean; ``n_train`` and ``n_test`` tiles.

    Examples
    --------
    >>> x = np.arange(12.0)[:, None]  # one feature of 12 tiles
    >>> counts = np.hstack([10 * x, 200 - 10 * x])  # one gene rises with it, one falls
    >>> table = sg.metrics.expression_probe(x[::2], counts[::2], x[1::2], counts[1::2], genes=["UP", "DOWN"])
    >>> table[["pcc", "mse", "mse_gene_mean"]].round(2)
           pcc   mse  mse_gene_mean
    gene
    UP    0.95  0.28           0.92
    DOWN  0.99  0.00           0.07
    """
    require_positive(n_components, "n_components")
    x, x_test = _features(train_x, "train_x"), _features(test_x, "test_x")
    chosen, y, y_test = expression_targets(train_counts, test_counts, genes, protocol=protocol, n_genes=n_genes)
    if (len(x), len(x_test)) != (len(y), len(y_test)):
        raise SetupError(
            f"train_x has {len(x)} rows and train_counts {len(y)}, test_x {len(x_test)} and test_counts {len(y_test)}; give one "
            "row a tile in each."
        )
    if x.shape[1] != x_test.shape[1]:
        raise SetupError(f"train_x has {x.shape[1]} features and test_x {x_test.shape[1]}; use one encoder.")
    probe = fit_probe(x, y, protocol, n_components=int(n_components), seed=seed)
    predicted = probe.predict(x_test).reshape(y_test.shape)  # a single gene may come flat
    return _score_slides(y_test, predicted, y, chosen, groups)


def expression_targets(
    train_counts: Counts,
    test_counts: Counts,
    genes: Sequence[str],
    *,
    protocol: Literal["default", "hest"] = "default",
    n_genes: int = 50,
) -> tuple[pd.Index, NDArray[np.float64], NDArray[np.float64]]:
    """Genes to predict, and their log expression in the training and in the test tiles.

    Parameters
    ----------
    train_counts, test_counts, genes, protocol, n_genes
        See :func:`expression_probe`.

    Returns
    -------
    genes
        Those chosen, in the order given.
    train, test
        ``(n, n_genes)`` and ``(m, n_genes)``.

    Examples
    --------
    >>> train, test = [[0, 5], [1, 5], [3, 5]], [[7, 5]]
    >>> genes, _, y = sg.metrics.expression_targets(train, test, ["A", "B"], protocol="hest")
    >>> genes.tolist(), y.round(2).tolist()  # B does not vary; 2.08 is log1p(7)
    (['A'], [[2.08]])
    """
    require_choice(protocol, ("default", "hest"), "protocol")
    require_positive(n_genes, "n_genes")
    counts, counts_test = _counts(train_counts, "train_counts"), _counts(test_counts, "test_counts")
    names = pd.Index(genes, name="gene")
    _check_counts(counts, counts_test, names)
    library = median_total(counts) if protocol == "default" else None
    log, log_test = log_expression(counts, library), log_expression(counts_test, library)
    chosen = _variable_genes(log, int(n_genes))
    return names[chosen], log[:, chosen].toarray(), log_test[:, chosen].toarray()


def fit_probe(x: NDArray, y: NDArray, protocol: str = "default", *, n_components: int = 256, seed: int = 0) -> Pipeline:
    """Fit scaler, PCA and ridge of one protocol to features ``(n, d)`` and log expression ``(n, g)``.

    See :func:`expression_probe` for the arguments. A gene's prediction does not depend on what others are fitted with it,
    but for ``"hest"``, whose penalty is divided by their number.
    """
    components = min(n_components, x.shape[1], len(x) - 1)
    probe = make_pipeline(StandardScaler(), PCA(components, random_state=seed), _head(protocol, components, y.shape[1]))
    with np.errstate(invalid="ignore"):  # a collapsed encoder has no variance for the PCA to divide into shares
        return probe.fit(x, y)


def summarise_expression(table: pd.DataFrame) -> dict[str, float]:
    """Mean and SD over genes of a table of :func:`expression_probe`.

    Parameters
    ----------
    table
        One row per slide and gene. A gene's slides are averaged first, so that the SD is between genes; for one summary
        a slide, ``{slide: summarise_expression(rows) for slide, rows in table.groupby("slide")}``.

    Returns
    -------
    ``pcc``, ``mse`` and ``mse_gene_mean``, each with ``_sd`` (of the population, ``ddof=0``, as HEST reports it);
    ``n_genes``, ``n_slides`` and ``n_undefined``, the rows whose correlation is undefined. Those are left out
    of ``pcc``, not counted as 0: a number of them above 0 belongs beside the mean.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"slide": "a", "pcc": [0.2, 0.6], "mse": 1.0, "mse_gene_mean": 1.5}, index=["A", "B"])
    >>> summary = sg.metrics.summarise_expression(table)
    >>> round(summary["pcc"], 2), round(summary["pcc_sd"], 2), summary["n_genes"]
    (0.4, 0.2, 2)
    """
    scores = ["pcc", "mse", "mse_gene_mean"]
    per_gene = table.groupby(level=0, sort=False)[scores].mean()
    mean, sd = per_gene.mean(), per_gene.std(ddof=0)
    summary = {key: float(x[name]) for name in scores for key, x in ((name, mean), (f"{name}_sd", sd))}
    counts = {"n_genes": len(per_gene), "n_slides": table["slide"].nunique(), "n_undefined": table["pcc"].isna().sum()}
    return summary | {key: int(n) for key, n in counts.items()}


def _head(protocol: str, components: int, n_genes: int) -> Ridge | RidgeCV:
    """Build the regression of one protocol, see :func:`expression_probe`."""
    if protocol == "hest":
        alpha = 100 / (components * n_genes)
        # HEST passes random_state too; lsqr draws nothing.
        return Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=0)
    # A penalty for each gene: one for all would be chosen by the genes of largest variance.
    return RidgeCV(ALPHAS, alpha_per_target=n_genes > 1)


def _variable_genes(logs: sparse.csr_array, n_genes: int) -> NDArray[np.intp]:
    """Columns of the most variable genes, ascending; genes that do not vary are out."""
    low, high = (getattr(logs, end)(axis=0).toarray().ravel() for end in ("min", "max"))
    varying = np.flatnonzero(high - low > CONSTANT * high)
    if len(varying) == 0:
        raise SetupError(f"None of the {len(high)} genes varies over the training tiles: check train_counts.")
    if len(varying) <= n_genes:
        return varying
    found = sc.pp.highly_variable_genes(
        ad.AnnData(sparse.csr_matrix(logs[:, varying])), n_top_genes=n_genes, flavor="seurat", inplace=False
    )
    # By rank and not by scanpy's own column, which holds more than n_genes when dispersions tie.
    dispersion = found["dispersions_norm"].fillna(-np.inf).to_numpy()
    return np.sort(varying[np.argsort(-dispersion, kind="stable")[:n_genes]])


def log_expression(counts: sparse.csr_array, library: float | None) -> sparse.csr_array:
    """log1p of the counts, each row first scaled to the sum ``library`` unless None; empty rows stay 0."""
    if library is not None:
        total = np.asarray(counts.sum(axis=1)).ravel()
        counts = sparse.diags_array(library / np.where(total > 0, total, 1.0)) @ counts
    return sparse.csr_array(counts).log1p()


def median_total(counts: sparse.csr_array) -> float:
    """Median total of the tiles that hold any count."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    if not total.any():
        raise SetupError(
            f"All {len(total)} training tiles have no counts; pool raw counts over the cells of each tile."
        )
    return float(np.median(total[total > 0]))


def _score_slides(
    target: NDArray, predicted: NDArray, train: NDArray, genes: pd.Index, groups: ArrayLike | None
) -> pd.DataFrame:
    """Score every gene (column) in every slide (rows of one label), beside the gene's mean in ``train``."""
    codes, names = pd.factorize(pd.Series(["all"] * len(target) if groups is None else groups))
    if len(codes) != len(target) or (codes < 0).any():
        raise SetupError(
            f"groups has {len(codes)} labels, {(codes < 0).sum()} of them missing, for {len(target)} test tiles; "
            "name each test tile's slide."
        )
    tables = []
    for i, slide in enumerate(names):
        y, p = target[codes == i], predicted[codes == i]
        scores = {
            "slide": slide,
            "pcc": pearson(y, p),
            "mse": ((p - y) ** 2).mean(axis=0),
            "mse_gene_mean": ((train.mean(axis=0) - y) ** 2).mean(axis=0),
            "n_train": len(train),
            "n_test": len(y),
        }
        tables.append(pd.DataFrame(scores, index=genes))
    return pd.concat(tables)


def pearson(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Pearson correlation of each column of ``a`` with that of ``b``; NaN where either is constant."""
    defined = np.ones(a.shape[1], dtype=bool)
    for x in (a, b):
        defined &= np.ptp(x, axis=0) > CONSTANT * np.abs(x).max(axis=0)
    u, v = (x[:, defined] - x[:, defined].mean(axis=0) for x in (a, b))
    result = np.full(len(defined), np.nan)
    result[defined] = (u * v).sum(axis=0) / (np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0))
    return np.clip(result, -1, 1)


def _features(x: ArrayLike, what: str) -> NDArray[np.float64]:
    features = np.asarray(x, dtype=np.float64)
    if features.ndim != 2:
        raise SetupError(f"{what} has shape {features.shape}; it must be (tiles, features).")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise SetupError(
            f"{len(bad)} of {len(features)} rows of {what} are not finite (first: row {bad[0]}); drop these tiles."
        )
    return features


def _counts(counts: Counts, what: str) -> sparse.csr_array:
    dense_or_sparse = counts if sparse.issparse(counts) else np.asarray(counts)
    matrix = sparse.csr_array(dense_or_sparse, dtype=np.float64, copy=True)
    matrix.sum_duplicates()  # log1p works on stored entries, and two may belong to one gene
    wrong = matrix.data[~np.isfinite(matrix.data) | (matrix.data < 0)]
    if len(wrong):
        raise SetupError(f"{what} contains {wrong[0]}; pass raw counts: finite, not negative, not scaled.")
    return matrix


def _check_counts(train: sparse.csr_array, test: sparse.csr_array, genes: pd.Index) -> None:
    for name, counts in (("train", train), ("test", test)):
        if counts.shape[1] != len(genes):
            raise SetupError(
                f"{name}_counts has shape {counts.shape} for {len(genes)} genes; give one column a gene, named in genes."
            )
    if train.shape[0] < 3 or test.shape[0] < 1:
        raise SetupError(f"{train.shape[0]} training and {test.shape[0]} test tiles; at least 3 and 1 are needed.")
    if genes.has_duplicates:
        raise SetupError(f"genes names {genes[genes.duplicated()][0]!r} twice; call var_names_make_unique() first.")
