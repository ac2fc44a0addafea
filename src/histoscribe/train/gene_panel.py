"""Which genes to predict, chosen from the training slides alone; and their noise ceiling."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array, csr_array, diags_array, vstack

from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.errors import ConfigError, DataError, MismatchError

PanelRule = Literal["pearson", "dispersion", "variance"]

EXCLUDED = re.compile(r"^(MT-|RP[SL])", re.IGNORECASE)
"""Mitochondrial and ribosomal genes, by symbol; upper case in man, mixed in mouse."""

N_BINS = 20  # scanpy's flavour "seurat"
CHUNK = 1024
"""Genes made dense at once."""


@dataclass(frozen=True)
class PanelConfig:
    """How the gene panel is chosen.

    Attributes:
        rule: "pearson" (variance of Pearson residuals) or "dispersion" (the paper, eq. 19-20), of
            counts; or "variance" (of logarithms), for bulk in any unit.
        n_genes: Size of the panel.
        min_detection: Least share of training regions that have some of a gene, for "pearson" and
            "variance".
        n_candidates: Genes a slide may nominate, for "dispersion"; the paper does not say.
    """

    rule: PanelRule = "pearson"
    n_genes: int = 250
    min_detection: float = 0.05
    n_candidates: int = 2000

    def __post_init__(self) -> None:
        if self.n_genes < 1 or self.n_candidates < 1:
            raise ConfigError(f"n_genes = {self.n_genes}; give one or more")
        if not 0 <= self.min_detection <= 1:
            raise ConfigError(f"min_detection = {self.min_detection}; give a share, 0 to 1")


def choose_panel(slides: Sequence[Regions], config: PanelConfig) -> GenePanel:
    """The panel by the rule of the config.

    Args:
        slides: Counts of the *training* slides, one table a slide.
        config: The rule and the size.

    Raises:
        ConfigError: If the rule is not known.
        DataError: If fewer genes qualify than were asked for.
    """
    rules: dict[str, Callable[[Sequence[Regions], PanelConfig], GenePanel]] = {
        "pearson": choose_by_pearson_residuals,
        "dispersion": choose_by_dispersion,
        "variance": choose_by_variance,
    }
    if config.rule not in rules:
        raise ConfigError(f"panel rule {config.rule!r}; give one of {', '.join(rules)}")
    return rules[config.rule](slides, config)


def choose_by_pearson_residuals(slides: Sequence[Regions], config: PanelConfig) -> GenePanel:
    """Genes whose counts vary most beyond what depth and mean explain, by `residual_variance`.

    They are chosen among those seen in `min_detection` of all training regions.
    """
    genes, tables, is_allowed = _common(slides)
    n_regions = sum(len(regions) for regions in slides)
    detected = sum(np.diff(csc_array(table).indptr) for table in tables) / n_regions
    is_there = np.sum([np.asarray(table.sum(axis=0)).ravel() for table in tables], axis=0) > 0
    candidates = np.flatnonzero(is_allowed & (detected >= config.min_detection) & is_there)
    _check_enough(len(candidates), config.n_genes, "detected in enough training regions")
    observed = np.ones((len(tables), len(genes)), dtype=bool)
    variance = residual_variance(tables, observed, candidates)
    return genes.take(candidates[np.argsort(-variance, kind="stable")[: config.n_genes]])


def residual_variance(
    tables: Sequence[csr_array],
    observed: Bool[np.ndarray, "table gene"],
    columns: Int64[np.ndarray, " column"],
) -> Float[np.ndarray, " column"]:
    r"""Variance of a gene's Pearson residuals: what depth and mean do not explain of its counts.

        mu[i, g] = n[i] p[g]      r = (x - mu) / sqrt(mu + mu^2 / theta), clipped to +-sqrt(N)

    with theta = 100, n[i] the library size, p[g] the gene's share of all counts. p, N and the
    variance of g are of the N regions in which it was measured.

    Source: Lause, Berens & Kobak 2021, analytic Pearson residuals.

    Args:
        tables: Counts, region x gene, one table a slide.
        observed: Genes that were measured in each.
        columns: The genes asked for; each measured somewhere.
    """
    counts = csc_array(vstack(tables))
    n_regions = np.array([len(table.indptr) - 1 for table in tables])
    table_of = np.repeat(np.arange(len(tables)), n_regions)
    size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    total = np.bincount(table_of, size, len(tables)) @ observed
    share = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() / np.maximum(total, 1.0)
    clip = np.sqrt(n_regions @ observed)
    variance = np.empty(len(columns))
    for start in range(0, len(columns), CHUNK):
        some = columns[start : start + CHUNK]
        mu = size[:, None] * share[some]
        residual = counts[:, some].toarray() - mu
        residual /= np.sqrt(mu + mu**2 / 100.0).clip(min=1e-12)
        cut = residual.clip(-clip[some], clip[some])
        variance[start : start + CHUNK] = cut.var(axis=0, where=observed[np.ix_(table_of, some)])
    return variance


def choose_by_dispersion(slides: Sequence[Regions], config: PanelConfig) -> GenePanel:
    r"""Genes nominated by normalised dispersion, then both highly expressed and highly variable.

    Each training slide nominates its `n_candidates` genes of the highest

        z[g] = (d[g] - mean d over bin(g)) / (sd of d over bin(g))                       (eq. 19)

    where d is the log of variance over mean of CP10k (scanpy's flavour "seurat": 20 bins of equal
    width of log mean; a bin of one gene gets z = 1). Of all nominated genes,

        G = TopK(mu) and TopK(sigma), the smallest K that gives n_genes                  (eq. 20)

    with mean and deviation of log1p CP10k over all training regions.

    Departs from the paper, which gives neither number: n_candidates and the way to K are ours.
    """
    genes, tables, is_allowed = _common(slides)
    tables = [_normalise(table) for table in tables]
    is_nominated = np.zeros(len(genes), dtype=bool)
    for table in tables:
        score = np.where(is_allowed, normalised_dispersion(table), -np.inf)
        best = np.argsort(-score, kind="stable")[: config.n_candidates]
        is_nominated[best[np.isfinite(score[best])]] = True
    candidates = np.flatnonzero(is_nominated)
    _check_enough(len(candidates), config.n_genes, "nominated by the training slides")
    logged = csr_array(vstack(tables))[:, candidates].log1p()
    mean, variance = _moments(logged, ddof=0)
    # A gene is in both lists at depth K if its worse rank is below K.
    worse = np.maximum(_rank(mean), _rank(variance))
    return genes.take(candidates[np.argsort(worse, kind="stable")[: config.n_genes]])


def choose_by_variance(slides: Sequence[Regions], config: PanelConfig) -> GenePanel:
    r"""Genes whose log1p(x) varies most over the training regions, in the unit they came in.

    For bulk, where a region is a patient and depth is divided out already (TPM, RSEM). A patient
    of several slides counts once. Counts are brought to CP10k first.
    """
    genes, tables, is_allowed = _common(slides, is_counts=False)
    if slides[0].expression_unit == "counts":
        tables = [_normalise(table) for table in tables]
    names = [
        (regions.patient_id[row] if regions.kind == "bulk" else regions.slide_id[row], name)
        for regions in slides
        for row, name in enumerate(regions.region_id)
    ]
    _, first = np.unique([f"{home}\0{name}" for home, name in names], return_index=True)
    logged = csr_array(vstack(tables))[np.sort(first)].log1p()
    n_regions = len(first)
    detected = np.diff(csc_array(logged).indptr) / n_regions
    candidates = np.flatnonzero(is_allowed & (detected >= config.min_detection))
    _check_enough(len(candidates), config.n_genes, "detected in enough training regions")
    _, variance = _moments(csr_array(logged[:, candidates]), ddof=0)
    return genes.take(candidates[np.argsort(-variance, kind="stable")[: config.n_genes]])


def normalised_dispersion(cp10k: csr_array) -> Float[np.ndarray, " gene"]:
    """Eq. 19 for the regions of one slide; -inf for genes without variance."""
    mean, variance = _moments(cp10k, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(variance / mean)
    dispersion[~np.isfinite(dispersion)] = np.nan
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), N_BINS + 1)
    bin_of_gene = np.digitize(level, edges[1:-1])
    score = np.full(len(mean), -np.inf)
    for bin_id in np.unique(bin_of_gene):
        rows = np.flatnonzero((bin_of_gene == bin_id) & np.isfinite(dispersion))
        if len(rows) == 1:
            score[rows] = 1.0  # scanpy: the bin's sd := its mean, its mean := 0
        elif len(rows) > 1:
            spread = dispersion[rows].std(ddof=1)
            score[rows] = (dispersion[rows] - dispersion[rows].mean()) / (spread or 1.0)
    return score


def noise_ceiling(
    regions: Regions,
    panel: GenePanel,
    generator: np.random.Generator,
    *,
    is_normalised: bool = True,
    n_draws: int = 5,
) -> float:
    r"""The mean per-gene PCC that a perfect predictor would reach against these noisy counts.

    Each count is thinned in two halves, x' ~ Binomial(x, 1/2) and x - x'. The PCC of the halves
    over the regions of a slide, r, gives the reliability of the whole by Spearman and Brown,
    R = 2 r / (1 + r), and the ceiling is sqrt(R): mean over genes, slides and draws. Negative r
    count as 0. Approximate, as thinning is exact for counts and nearly so for their logarithms.

    Args:
        regions: Counts.
        panel: The genes.
        generator: What draws the halves.
        is_normalised: log1p CP10k, else log1p counts.
        n_draws: Times the counts are split.

    Raises:
        DataError: If the expression is not counts.
    """
    if regions.expression is None or regions.expression_unit != "counts":
        raise DataError("a noise ceiling is drawn from raw counts; give expression in counts")
    columns = regions.genes.rows_of(panel.ids)
    if (columns < 0).any():
        missing = panel.symbols[int((columns < 0).argmax())]
        raise MismatchError(f"gene {missing} of the panel is not among the regions' genes")
    slide_ids = np.array(regions.slide_id)
    ceilings = []
    for slide_id in dict.fromkeys(regions.slide_id):
        counts = csr_array(regions.expression[np.flatnonzero(slide_ids == slide_id)])
        for _ in range(n_draws):
            halves = _thin(counts, generator, is_normalised)
            r = _correlate(*(half[:, columns].log1p().toarray() for half in halves)).clip(0)
            ceilings.append(float(np.sqrt(2 * r / (1 + r)).mean()))
    return float(np.mean(ceilings))


def _thin(
    counts: csr_array, generator: np.random.Generator, is_normalised: bool
) -> list[csr_array]:
    first = counts.copy()
    first.data = generator.binomial(counts.data.astype(np.int64), 0.5).astype(np.float64)
    halves = [csr_array(first), csr_array(counts.astype(np.float64) - first)]
    return [_normalise(half) for half in halves] if is_normalised else halves


def _correlate(
    x: Float[np.ndarray, "region gene"], y: Float[np.ndarray, "region gene"]
) -> Float[np.ndarray, " gene"]:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.where(norm > 0, (x * y).sum(axis=0) / np.where(norm > 0, norm, 1.0), 0.0)


def _common(
    slides: Sequence[Regions], *, is_counts: bool = True
) -> tuple[GenePanel, list[csr_array], Bool[np.ndarray, " gene"]]:
    """Genes measured in every slide, the counts of each slide, and which may be chosen."""
    if not slides:
        raise DataError("no training slides to choose genes from")
    shared = set(slides[0].genes.ids)
    for regions in slides:
        wanted = "counts" if is_counts else slides[0].expression_unit
        if regions.expression is None or regions.expression_unit != wanted:
            mend = "; set panel.rule to variance" if is_counts else " on all slides"
            raise DataError(
                f"genes are chosen by this rule from {wanted}, got {regions.expression_unit}{mend}"
            )
        if regions.genes.namespace != slides[0].genes.namespace:
            raise MismatchError(
                "the slides name their genes in different ways; rename them with "
                "train.naming.name_alike first"
            )
        shared &= set(np.array(regions.genes.ids)[regions.gene_observed].tolist())
    # Sorted, so that ties do not hang on the order in which a file names its genes.
    first = slides[0].genes
    genes = first.take(first.rows_of(sorted(shared)))
    tables = [
        csr_array(regions.expression[:, regions.genes.rows_of(genes.ids)])
        for regions in slides
        if regions.expression is not None
    ]
    is_allowed = np.array([EXCLUDED.match(symbol) is None for symbol in genes.symbols])
    return genes, tables, is_allowed


def _normalise(counts: csr_array) -> csr_array:
    """Counts per 10,000; a region without counts stays empty."""
    size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return csr_array(diags_array(1e4 / np.where(size > 0, size, 1.0)) @ counts)


def _moments(
    matrix: csr_array, ddof: int
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    n = len(matrix.indptr) - 1
    mean = np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel() / n
    square = np.asarray(matrix.multiply(matrix).sum(axis=0), dtype=np.float64).ravel() / n
    return mean, (square - mean**2).clip(min=0) * n / max(n - ddof, 1)


def _rank(values: Float[np.ndarray, " gene"]) -> Int64[np.ndarray, " gene"]:
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return rank


def _check_enough(n_found: int, n_wanted: int, what: str) -> None:
    if n_found < n_wanted:
        raise DataError(
            f"{n_wanted} genes were asked for, only {n_found} are {what} (mitochondrial and "
            "ribosomal genes aside); ask for fewer genes or give more counts"
        )
