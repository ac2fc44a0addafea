r"""Diagnosis of the chain image - gene - gene' - text, by which words reach images never seen.

Angles on the sphere are a metric. With alpha between an image and its expression, gamma between
that expression and the nearest labelled profile, beta between a profile and its text,

    angle(image, text) <= alpha + gamma + beta =: Theta

and an image is labelled rightly if texts of other classes are further than 2 Theta from its own:
sufficient, and far from necessary. A constant offset between the modalities opens every angle and
moves no ranking, which is why each angle stands beside what a wrong partner has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from histoscribe.errors import DataError, MismatchError

LEARNED = 0.60
"""Share of pairs nearer to their own partner than to a wrong one, above which a link is called
learned; 0.5 is chance, and 0.6 is the least AUROC that is asked of the whole chain."""

PLATFORM_GAP = 1.0
"""Distance of two platforms' means in typical distances of a profile from its own platform's mean:
beyond it the platform says more of where a profile lies than the profile does."""

BIAS = 1.0
"""Offset of a class's mean score from the mean of all, in the scores' typical deviation: beyond it
an ordinary unit of another class may score higher on it than on its own."""

TIE = 1e-9
"""Cosines that differ by less are rounded sums of the same."""

AT_ONCE = 1024
"""Rows compared at once; bounds memory on many profiles."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Embeddings of unit length, link by link.

    Attributes:
        image: Regions.
        gene: Their measured expression, row by row.
        profile: Labelled profiles of the gene-text pairs.
        text: Their texts, row by row.
        text_key: Their keys: equal where they mean the same.
        platform: What measured each profile.
        class_score: Scores of units on classes, for the bias; no rows where none were asked.
        classes: Names of the classes.
    """

    image: Float[np.ndarray, "region d"]
    gene: Float[np.ndarray, "_ d"]
    profile: Float[np.ndarray, "profile d"]
    text: Float[np.ndarray, "_ d"]
    text_key: tuple[str, ...]
    platform: tuple[str, ...]
    class_score: Float[np.ndarray, "unit class"]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        value: The number that is judged.
        unit: Of the number.
        threshold: What it is held against.
        is_fine: Whether it holds.
        advice: What it means and what to do, in a sentence.
    """

    name: str
    value: float
    unit: str
    threshold: str
    is_fine: bool
    advice: str


def diagnose(chain: Chain) -> list[Finding]:
    """Look at each link, at the gap between platforms, and at the bias of each class.

    Raises:
        DataError: Fewer than two regions or profiles.
        MismatchError: Rows that do not pair.
    """
    _check(chain)
    alpha = link_angle(chain.image, chain.gene)
    beta = link_angle(chain.profile, chain.text)
    gamma = float(np.median(nearest_angle(chain.gene, chain.profile)))
    keys = np.array(chain.text_key)
    return [
        _link("image-gene (alpha)", alpha, won_share(chain.image, chain.gene), IMAGE_GENE),
        _link("gene-text (beta)", beta, won_share(chain.profile, chain.text, keys), GENE_TEXT),
        _bridge(gamma, nearest_angle(chain.profile, chain.profile, keys)),
        _bound(alpha + beta + gamma, chain),
        *_gaps(chain),
        *_biases(chain),
    ]


def angle(
    a: Float[np.ndarray, "row d"], b: Float[np.ndarray, "row d"]
) -> Float64[np.ndarray, " row"]:
    """Angle of each row of one to that of the other, degrees."""
    cosine = (a.astype(np.float64) * b).sum(axis=1)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def link_angle(a: Float[np.ndarray, "row d"], b: Float[np.ndarray, "row d"]) -> float:
    """Median angle of partners, degrees."""
    return float(np.median(angle(a, b)))


def won_share(
    a: Float[np.ndarray, "row d"],
    b: Float[np.ndarray, "row d"],
    key: np.ndarray | None = None,
) -> float:
    """Share of (row, wrong partner) pairs in which the own partner is nearer; ties count half.

    Chance is 0.5 whatever the gap between the modalities. Rows of one key are no wrong partners.
    """
    won, n = 0.0, 0
    for start in range(0, len(a), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(a)))
        cosine = a[rows].astype(np.float64) @ b.T
        is_wrong = np.arange(len(b)) != rows[:, None]
        if key is not None:
            is_wrong = key != key[rows][:, None]
        lead = (cosine[np.arange(len(rows)), rows][:, None] - cosine)[is_wrong]
        won += float((lead > TIE).sum() + 0.5 * (np.abs(lead) <= TIE).sum())
        n += int(is_wrong.sum())
    return won / n if n else float("nan")


def nearest_angle(
    a: Float[np.ndarray, "row d"],
    b: Float[np.ndarray, "other d"],
    key: np.ndarray | None = None,
) -> Float64[np.ndarray, " row"]:
    """Angle of each row to the nearest of the others, degrees.

    With a key, `a` and `b` are the same rows, and only others of its own key count; NaN for a row
    that is alone with its key.
    """
    nearest = np.full(len(a), -np.inf)
    for start in range(0, len(a), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(a)))
        cosine = a[rows].astype(np.float64) @ b.T
        if key is not None:
            is_other = (key == key[rows][:, None]) & (np.arange(len(b)) != rows[:, None])
            cosine = np.where(is_other, cosine, -np.inf)
        nearest[rows] = cosine.max(axis=1)
    return np.where(np.isfinite(nearest), np.degrees(np.arccos(nearest.clip(-1, 1))), np.nan)


def platform_gap(a: Float[np.ndarray, "row d"], b: Float[np.ndarray, "other d"]) -> float:
    """Distance of two means over the typical distance of a row from its own mean.

    No classifier is trained. What sampling alone would give is taken off: with n rows a mean is
    off by spread^2 / n.
    """
    mean_a, mean_b = a.mean(axis=0, dtype=np.float64), b.mean(axis=0, dtype=np.float64)
    spread_a = float(((a - mean_a) ** 2).sum(axis=1).mean())
    spread_b = float(((b - mean_b) ** 2).sum(axis=1).mean())
    spread = (spread_a + spread_b) / 2
    by_chance = spread_a / max(len(a) - 1, 1) + spread_b / max(len(b) - 1, 1)
    distance = max(float(((mean_a - mean_b) ** 2).sum()) - by_chance, 0.0)
    if spread == 0:
        return float("inf") if distance > 0 else 0.0
    return float(np.sqrt(distance / spread))


def class_bias(score: Float[np.ndarray, "unit class"]) -> Float64[np.ndarray, " class"]:
    """How far the mean score of each class is from that of all, in typical deviations."""
    known = score[np.isfinite(score).all(axis=1)].astype(np.float64)
    mean, deviation = known.mean(axis=0), known.std(axis=0, ddof=1).mean()
    return (mean - mean.mean()) / max(float(deviation), np.finfo(np.float64).tiny)


IMAGE_GENE = (
    "regions lie nearer to their own expression than to that of others",
    "the image-gene link is not learned: give more or cleaner image-gene pairs, check that slides "
    "and spots fit each other, and train longer",
)
GENE_TEXT = (
    "profiles lie nearer to their own text than to other texts",
    "the gene-text link is not learned: check that labels fit the profiles, give more profiles a "
    "label, add marker lists, or unlock the text tower",
)


def _link(name: str, angle_deg: float, won: float, words: tuple[str, str]) -> Finding:
    is_fine = bool(won >= LEARNED)
    text = words[0] if is_fine else words[1]
    return Finding(
        name,
        angle_deg,
        "° median",
        f"own partner nearer in {LEARNED:.0%} of comparisons",
        is_fine,
        f"{text} ({won:.0%} of comparisons; chance is 50%)",
    )


def _bridge(gamma: float, nearest: Float64[np.ndarray, " profile"]) -> Finding:
    """Is measured expression as near to a labelled profile as such profiles are to each other?

    Profiles that are alone of their class, NaN in `nearest`, have none to be compared with.
    """
    known = nearest[np.isfinite(nearest)]
    within = float(np.median(known)) if len(known) else float("nan")
    is_fine = bool(gamma <= 2 * within)
    beside = f" (profiles of one class: {within:.0f}°)"
    if not len(known):
        beside = (
            " (not to be judged: no class has two profiles; keep donors apart, or single cells)"
        )
    good = "expression of regions lies among the labelled profiles"
    bad = (
        "expression of regions lies apart from all labelled profiles: give labelled profiles of "
        "this tissue, or add marker lists"
    )
    limit = "2 x the angle between profiles of one class"
    return Finding(
        "bridge gap (gamma)", gamma, "° median", limit, is_fine, (good if is_fine else bad) + beside
    )


def _bound(theta: float, chain: Chain) -> Finding:
    apart = _separation(chain)
    is_fine = bool(2 * theta < apart)
    said = (
        "labels of units within these angles are right by the triangle inequality"
        if is_fine
        else "no guarantee: this bound is sufficient and seldom met, and rankings hold without it; "
        "judge the model by its scores"
    )
    limit = f"half of {apart:.0f}°, the least angle between two texts"
    return Finding("Theta = alpha + beta + gamma", theta, "°", limit, is_fine, said)


def _separation(chain: Chain) -> float:
    """The least angle between texts of different keys, degrees."""
    _, first = np.unique(chain.text_key, return_index=True)
    if len(first) < 2:
        return float("nan")
    text = chain.text[first].astype(np.float64)
    cosine = text @ text.T
    np.fill_diagonal(cosine, -1)
    return float(np.degrees(np.arccos(cosine.max().clip(-1, 1))))


def _gaps(chain: Chain) -> list[Finding]:
    """Regions against each platform of the profiles, and these against each other."""
    names = sorted(set(chain.platform))
    of = {name: chain.profile[[p == name for p in chain.platform]] for name in names}
    parts = [("the regions", chain.gene), *of.items()]
    found = []
    for place, (name, rows) in enumerate(parts):
        for other, others in parts[place + 1 :]:
            gap = platform_gap(rows, others)
            is_fine = gap <= PLATFORM_GAP
            said = (
                "the two lie among each other"
                if is_fine
                else "what lies on one platform is more alike than what is alike on both: no fault "
                "where the two hold other kinds of cells; else give each platform several kinds, "
                "and calibrate classes"
            )
            title = f"platform gap: {name} - {other or 'unknown platform'}"
            limit = f"{PLATFORM_GAP:g} spread, the typical distance from a platform's mean"
            found.append(Finding(title, gap, "spreads", limit, is_fine, said))
    return found


def _biases(chain: Chain) -> list[Finding]:
    if len(chain.class_score) < 2 or len(chain.classes) < 2:
        return []
    found = []
    for name, bias in zip(chain.classes, class_bias(chain.class_score), strict=True):
        is_fine = bool(abs(bias) <= BIAS)
        side = "takes labels of others" if bias > 0 else "loses its labels to others"
        said = (
            "scores of this class are on the scale of the others"
            if is_fine
            else f"this class {side}: annotate with calibration; rankings of it are not touched"
        )
        limit = f"{BIAS:g} standard deviation either way"
        found.append(Finding(f"bias: {name}", float(bias), "sd", limit, is_fine, said))
    return found


def _check(chain: Chain) -> None:
    for what, rows in (
        ("regions with expression", chain.gene),
        ("labelled profiles", chain.profile),
    ):
        if len(rows) < 2:
            raise DataError(f"{len(rows)} {what}; wanted two or more to look at the chain")
    pairs: Sequence[tuple[str, int, int]] = (
        ("images and expression", len(chain.image), len(chain.gene)),
        ("profiles and texts", len(chain.profile), len(chain.text)),
        ("profiles and keys", len(chain.profile), len(chain.text_key)),
        ("profiles and platforms", len(chain.profile), len(chain.platform)),
        ("classes and their scores", len(chain.classes), chain.class_score.shape[1]),
    )
    for what, first, second in pairs:
        if first != second:
            raise MismatchError(f"{what} do not pair: {first} and {second}")
