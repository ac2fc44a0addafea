"""What is left when one kind of pair is rare: the low-data curve, on the toy world of words.

    python benchmarks/low_data.py --out OUT

A world of eight kinds of cells (`histoscribe.data.toy_words`): 2,048 images with expression on one
platform, 2,048 labelled profiles on another; and in the arms with image-text pairs, for each image
the name of the kind that most of its cells are (not where two are as many: some 1,300 are left).
One kind of pair is cut to 1/8, 1/64 and 1/512 of its number (2,048 to 256, 32, 4), the others stay
whole. Expression whose pair was cut away is not there at all: standardiser and gene space are
fitted on what is left. Scored is what is asked for in the end: whether an image that was never seen
holds a kind, by the cosine of image and name; mean AUROC over the kinds. Without image-text pairs
no image was ever held against a text. No held-out score chooses anything: a fit ends at its last
step.

Two ways to fit: "anchor", the default, in a fixed gene space; "softmax", with a gene tower that
learns and pairs that are pushed apart, as SpatialWhisperer's. Each entry: mean over seeds (of world
and net), half the width of its 95 % interval (Student's t). What is finished is kept in --out.
"""

import argparse
import json
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from histoscribe.app.study import write_json
from histoscribe.data.toy_words import (
    KINDS,
    N_FEATURES,
    N_GENES,
    ToyWordsWorld,
    toy_words_world,
)
from histoscribe.evaluate.ranking import auroc
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import (
    AlignData,
    HeldBags,
    HeldOut,
    MeasuredGenes,
    StackedGenes,
    TextRows,
    fit_gene_map,
)
from histoscribe.train.align_loop import AlignTask, align_net
from histoscribe.train.align_step import Aligner
from histoscribe.train.gene_standardiser import fit_gene_standardiser, gene_values
from histoscribe.train.net_task import FitLog
from histoscribe.train.pairs import Pairs, pair_rows, pair_texts

N_TRAIN = N_PROFILES = 2048
N_TEST = 600
SHARES = (1 / 8, 1 / 64, 1 / 512)
KIND_NAMES = ("image-gene", "gene-text", "image-text")
WIDTH, TEXT_WIDTH = 48, 64
COMMON: dict[str, Any] = {
    "objective": "align",
    "image_gene_rows": 96,
    "gene_text_rows": 96,
    "image_text_rows": 96,
    "learning_rate": 2e-3,
    "gene_dropout": 0.0,
    "embedding_width": WIDTH,
    "gene_width": WIDTH,
}
CONFIGS = {
    "anchor": AlignConfig(**COMMON, loss="anchor", gene_space="fixed", n_steps=100),
    "softmax": AlignConfig(**COMMON, loss="softmax", gene_space="learned", n_steps=150),
}


@dataclass(frozen=True)
class Arm:
    """What is cut, and what there is.

    Attributes:
        way: Name of the way to fit.
        cut: Kind of pair that is cut, "" for none.
        share: What is left of it.
        has_image_text: Whether there are image-text pairs.
        seed: Of the world and the net.
    """

    way: str
    cut: str
    share: float
    has_image_text: bool
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        cut = f"{self.cut or 'nothing'}-1_{round(1 / self.share)}"
        return f"{self.way}-{cut}-{'with' if self.has_image_text else 'without'}-{self.seed}"


def all_arms(ways: Sequence[str], seeds: int) -> Iterable[Arm]:
    """Every fit; what is not there is not cut."""
    for way in ways:
        for seed in range(seeds):
            for has_image_text in (False, True):
                yield Arm(way, "", 1.0, has_image_text, seed)
                for kind in KIND_NAMES if has_image_text else KIND_NAMES[:2]:
                    yield from (Arm(way, kind, share, has_image_text, seed) for share in SHARES)


@lru_cache(maxsize=1)
def world_of(seed: int) -> ToyWordsWorld:
    return toy_words_world(1000 + seed, N_TRAIN + N_TEST, N_PROFILES)


def hash_texts(texts: Sequence[str]) -> np.ndarray:
    """A bag of hashed character trigrams of each text: eight names need no language model."""
    rows = np.zeros((len(texts), TEXT_WIDTH), np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.casefold()}  "
        for place in range(len(padded) - 2):
            number = zlib.crc32(padded[place : place + 3].encode())
            rows[row, number % TEXT_WIDTH] += 1 if number >> 31 else -1
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.float32(TEXT_WIDTH**0.5 / 2) / length


def name_images(world: ToyWordsWorld) -> list[str]:
    """The kind that most cells of each image are, "" where two are as many."""
    most = world.share.max(axis=1, keepdims=True)
    is_alone = (world.share == most).sum(axis=1) == 1
    named = zip(world.share.argmax(axis=1).tolist(), is_alone.tolist(), strict=True)
    return [KINDS[kind] if alone else "" for kind, alone in named]


def pairs_of(world: ToyWordsWorld, arm: Arm) -> tuple[Pairs, ...]:
    """The pairs of an arm; rows of expression are those of all images, then of the profiles."""
    train, n_images = np.arange(N_TRAIN), len(world.of_images)
    keys = ("",) * n_images + (world.profiles.text_key or ())
    pairs = [
        pair_rows("image-gene", train, train),
        pair_texts("gene-text", keys, world.texts, n_images + np.arange(N_PROFILES)),
    ]
    if arm.has_image_text:
        pairs.append(pair_texts("image-text", name_images(world), world.texts, train))
    return tuple(one.cut(arm.share, arm.seed) if one.kind == arm.cut else one for one in pairs)


def data_of(world: ToyWordsWorld, arm: Arm) -> tuple[AlignData, np.ndarray]:
    """What an arm is fitted on; and the rows of expression of its image-gene pairs."""
    pairs = pairs_of(world, arm)
    rows = {one.kind: one.left for one in pairs}
    values = gene_values([world.of_images, world.profiles], world.of_images.genes)
    seen = np.concatenate([rows["image-gene"], rows["gene-text"]])
    genes = MeasuredGenes(values, fit_gene_standardiser(values.take(seen)))
    keys = world.texts.keys
    number = np.array([keys.index(key) for key in world.texts.text_key])
    looked_at = N_TRAIN + np.arange(8)  # the loop wants some; it ends at the last step anyway
    data = AlignData(
        HeldBags(world.images),
        StackedGenes((genes,)),
        TextRows(number, hash_texts(world.texts.text)),
        pairs,
        HeldOut(looked_at, looked_at),
    )
    return data, rows["image-gene"]


def new_net(config: AlignConfig, seed: int) -> Trimodal:
    """A small net, cells alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bitro = BitroConfig(
            N_FEATURES,
            1,
            1,
            N_GENES,
            has_context=False,
            cells_in_training=0,
            width=WIDTH,
            gat_layers=0,
            transformer_layers=0,
            position="none",
            dropout=0.0,
            query_std=0.5,
        )
        return Trimodal(
            TrimodalConfig(
                bitro,
                n_text=TEXT_WIDTH,
                embedding_width=config.embedding_width,
                gene_width=config.gene_width,
                gene_space=config.gene_space,
            )
        )


def score_arm(arm: Arm) -> float:
    """Mean AUROC over the kinds, on images that were never seen."""
    world, base = world_of(arm.seed), CONFIGS[arm.way]
    config = AlignConfig(**{**asdict(base), "validate_every": base.n_steps, "patience": 99})
    data, images = data_of(world, arm)
    net = Aligner(new_net(config, arm.seed))
    if net.space.gene_map is not None:
        net.space.gene_map.copy_(torch.from_numpy(fit_gene_map(*data.genes.read(images), WIDTH)))
    fitted = align_net(net, data, AlignTask(0, 1, arm.seed, arm.name), config, FitLog())
    net.load_state_dict(fitted.weights)
    net.eval()
    test = np.arange(N_TRAIN, N_TRAIN + N_TEST)
    names = np.array([world.texts.text.index(kind) for kind in KINDS])
    with torch.no_grad():
        image = net.space.embed_regions(data.images.bags(test, 0))
        cosine = (image @ net.embed_texts(data, names).T).numpy()
    present = world.presence[test]
    return float(np.mean([auroc(c, p)[0] for c, p in zip(cosine.T, present.T, strict=True)]))


def run_arms(arms: Sequence[Arm], out: Path) -> dict[Arm, float]:
    """Every arm's score, taken up where it is there."""
    out.mkdir(parents=True, exist_ok=True)
    said = {}
    for done, arm in enumerate(arms, start=1):
        path, started = out / f"{arm.name}.json", time.perf_counter()
        if not path.exists():
            write_json(path, {"arm": asdict(arm), "auroc": score_arm(arm)})
        said[arm] = float(json.loads(path.read_text(encoding="utf-8"))["auroc"])
        seconds = time.perf_counter() - started
        print(f"[{done}/{len(arms)}] {arm.name}: {said[arm]:.3f}, {seconds:.0f} s", flush=True)
    return said


def spread(scores: Sequence[float]) -> str:
    """Mean, and half the width of its interval over seeds."""
    n = len(scores)
    if n < 2:
        return f"{np.mean(scores):.3f}"
    half = student.ppf(0.975, n - 1) * np.std(scores, ddof=1) / n**0.5
    return f"{np.mean(scores):.3f} ± {half:.3f}"


def print_table(said: dict[Arm, float], way: str) -> None:
    """One way to fit: rows are what is cut, columns how far."""
    columns = ("1", *(f"1/{round(1 / share)}" for share in SHARES))
    print(f"\n| {way}: pairs cut | image-text pairs | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for kind in KIND_NAMES:
        for has in (False, True):
            if kind == "image-text" and not has:
                continue
            cells = [
                spread(
                    [
                        score
                        for arm, score in said.items()
                        if (arm.way, arm.has_image_text, arm.share) == (way, has, share)
                        and arm.cut == ("" if share == 1 else kind)
                    ]
                )
                for share in (1.0, *SHARES)
            ]
            print(f"| {kind} | {'with' if has else 'without'} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where scores are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(CONFIGS), help="ways to fit, comma-separated")
    arguments = parser.parse_args()
    ways = tuple(arguments.ways.split(","))
    said = run_arms(list(all_arms(ways, arguments.seeds)), arguments.out)
    for way in ways:
        print_table(said, way)


if __name__ == "__main__":
    main()
