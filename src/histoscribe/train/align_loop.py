"""The training of one net of an alignment, step by step.

Whatever is random in a step is drawn from the seed of the net and the number of the step, so that a
fit that was killed goes on to the very same weights. There are no epochs here: each kind of pair
has a length of its own, and the state is of a step. That is why the loop is written out, where
`train/loop.py` has Lightning's.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histoscribe.errors import DataError
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import AlignData
from histoscribe.train.align_step import Aligner, losses_of, score_held_out
from histoscribe.train.draw import mix
from histoscribe.train.net_task import DivergenceError, Epoch, FitLog
from histoscribe.train.pairs import PairStream, draw_step
from histoscribe.train.state import read_state, write_state

LAST_RATE = 0.05
"""Of its highest, where the cosine ends; as SpatialWhisperer's."""


@dataclass(frozen=True)
class AlignTask:
    """One net to be aligned.

    Attributes:
        net: Its place among all nets.
        n_nets: How many there are.
        seed: Its own seed.
        key: Names the whole fit: data, settings, version.
    """

    net: int
    n_nets: int
    seed: int
    key: str


@dataclass
class AlignedNet:
    """A net on its way, and at the end.

    Attributes:
        step: Steps that were made.
        best_step: After which its held-out score was best; the last, without anything held out.
        best_score: See `score_held_out`; minus infinity without anything held out.
        weights: Of that step.
        history: At each look at what is held out: step, scores and mean losses since the last.
        n_worse: Looks since the best.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    n_worse: int = 0


class RunningLosses:
    """Mean losses since they were last taken."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.n = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Of one step."""
        for name, loss in losses.items():
            self.total[name] = self.total.get(name, 0.0) + float(loss.detach())
        self.n += 1

    def take(self) -> dict[str, float]:
        """The means, and begin anew."""
        means = {f"loss/{name}": total / max(1, self.n) for name, total in self.total.items()}
        self.total, self.n = {}, 0
        return means


def align_net(
    net: Aligner, data: AlignData, task: AlignTask, config: AlignConfig, log: FitLog
) -> AlignedNet:
    """Align one net until its steps are made, or its held-out score no longer rises.

    With something held out its best weights come back, else its last.

    A net that was finished before, or a state that was left by a kill, is taken up where the log
    has a folder and the key of the fit is the same.

    Args:
        net: The net, with the weights to begin with, on the device; it is trained in place.
        data: What it is aligned on.
        task: Its number and seed.
        config: How.
        log: Where to write and whom to tell; an epoch is the steps between two looks.

    Raises:
        DivergenceError: If the net diverged.
    """
    finished = running = None
    if log.folder is not None:
        place = log.folder / "state" / task.key
        finished, running = place / f"net{task.net}.safetensors", place / f"net{task.net}.running"
        if finished.exists():
            return AlignedNet(**read_state(finished))
    optimiser = make_optimiser(net, config)
    losses = RunningLosses()
    so_far = _take_up(running, net, optimiser, losses)
    rows = config.pair_rows()
    streams = [PairStream(pairs, rows[pairs.kind], task.seed) for pairs in data.pairs]
    written_at = time.monotonic()
    with _forked(config.device):
        while so_far.step < config.n_steps and so_far.n_worse < config.patience:
            losses.add(learn_step(net, data, streams, optimiser, task.seed, so_far.step, config))
            so_far.step += 1
            if so_far.step % config.validate_every == 0 or so_far.step == config.n_steps:
                _look(net, data, so_far, losses.take(), has_held_out=config.has_held_out)
                _tell(so_far, task, config, log)
            if running is not None and time.monotonic() - written_at >= log.every_s:
                _write(running, net, optimiser, losses, so_far)
                written_at = time.monotonic()
    if finished is not None and running is not None:
        write_state(vars(so_far), finished)
        running.unlink(missing_ok=True)
    return so_far


def make_optimiser(net: Aligner, config: AlignConfig) -> torch.optim.AdamW:
    """AdamW on all that is trainable, by groups with rates of their own.

    Matrices decay; vectors, the scale and single numbers do not.
    """
    rate = {
        "heads": config.learning_rate,
        "text": config.text_learning_rate,
        "image_lora": config.lora_learning_rate,
        "text_lora": config.lora_learning_rate,
    }
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_group_of(name), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate[group],
                "weight_decay": config.weight_decay * is_matrix,
                "highest": rate[group],
                "waits": float(group.startswith("text")),
            }
            for (group, is_matrix), parameters in sorted(groups.items(), key=lambda one: one[0])
        ]
    )


def rate_of(step: int, config: AlignConfig, *, waits: bool) -> float:
    r"""The share of its highest rate that a group learns with, at a step from 0.

        min(1, (t + 1) / n_w) (0.05 + 0.95 (1 + cos(pi t / n)) / 2)            n_w = warm_up n

    The text tower waits for n_w steps, in which the heads come to fit it, and then warms up itself.
    """
    n_warm = max(1, round(config.warm_up * config.n_steps))
    cosine = (1 + math.cos(math.pi * step / config.n_steps)) / 2
    since = step - n_warm if waits else step
    return min(1.0, max(0.0, (since + 1) / n_warm)) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def _group_of(name: str) -> str:
    if ".lora_" in name:
        return "text_lora" if name.startswith("text.") else "image_lora"
    return "text" if name.startswith("text.") else "heads"


def learn_step(
    net: Aligner,
    data: AlignData,
    streams: Sequence[PairStream],
    optimiser: torch.optim.AdamW,
    seed: int,
    step: int,
    config: AlignConfig,
) -> dict[str, Tensor]:
    """Draw, look, learn: one step, the first being 0; its losses come back.

    PyTorch's random state is set by seed and step; the caller keeps it apart.

    Raises:
        DivergenceError: If the loss is no number.
    """
    torch.manual_seed(mix(seed, step, 2))
    is_waiting = step < max(1, round(config.warm_up * config.n_steps))
    for group in optimiser.param_groups:
        group["lr"] = group["highest"] * rate_of(step, config, waits=bool(group["waits"]))
    net.train()
    losses = losses_of(
        net,
        data,
        draw_step(streams, step),
        config,
        seed=mix(seed, step, 3),
        is_text_waiting=is_waiting,
    )
    if not bool(torch.isfinite(losses["loss"])):
        raise DivergenceError(
            f"the net diverged in step {step + 1} (loss {float(losses['loss'])}); lower "
            "align.learning_rate, or check the features for outliers"
        )
    optimiser.zero_grad(set_to_none=True)
    losses["loss"].backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    optimiser.step()
    return losses


def _look(
    net: Aligner,
    data: AlignData,
    so_far: AlignedNet,
    losses: dict[str, float],
    *,
    has_held_out: bool,
) -> None:
    """Score the net on what is held out, and keep its weights if it is better than before."""
    scores = score_held_out(net, data) if has_held_out else {}
    so_far.history.append({"step": float(so_far.step), **scores, **losses})
    if not has_held_out:
        so_far.best_step, so_far.weights = so_far.step, _copy(net)
        return
    if set(scores) == {"score"}:
        raise DataError(
            "the part that is left aside to stop by holds fewer than two regions and no profile; "
            "set align.stops_early to false, or fit.n_folds lower"
        )
    if not math.isfinite(scores["score"]):
        raise DivergenceError(
            f"the net diverged before step {so_far.step} (score {scores['score']}); lower "
            "align.learning_rate, or check the features for outliers"
        )
    so_far.n_worse += 1
    if scores["score"] > so_far.best_score:
        so_far.best_score, so_far.best_step, so_far.n_worse = scores["score"], so_far.step, 0
        so_far.weights = _copy(net)


def _copy(net: Aligner) -> dict[str, Tensor]:
    return {name: t.detach().cpu().clone() for name, t in _learned(net).items()}


def _learned(net: Aligner) -> dict[str, Tensor]:
    """What of a net is kept: all of the space; of a text tower only what learns."""
    moving = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    state = net.state_dict()
    return {n: t for n, t in state.items() if n.startswith("space.") or n in moving}


def _tell(so_far: AlignedNet, task: AlignTask, config: AlignConfig, log: FitLog) -> None:
    if log.on_epoch is None:
        return
    epoch = -(-so_far.step // config.validate_every)
    most = -(-config.n_steps // config.validate_every)
    log.on_epoch(
        Epoch(task.net, task.n_nets, epoch, most, so_far.history[-1].get("score", math.nan))
    )


def _write(
    path: Path,
    net: Aligner,
    optimiser: torch.optim.AdamW,
    losses: RunningLosses,
    so_far: AlignedNet,
) -> None:
    state = {
        "so_far": vars(so_far),
        "net": _learned(net),
        "optimiser": optimiser.state_dict(),
        "losses": [losses.total, losses.n],
    }
    write_state(state, path)


def _take_up(
    path: Path | None, net: Aligner, optimiser: torch.optim.AdamW, losses: RunningLosses
) -> AlignedNet:
    """Where a killed fit stopped; the beginning, if there is none."""
    if path is None or not path.exists():
        return AlignedNet()
    state: dict[str, Any] = read_state(path)
    net.load_state_dict(state["net"], strict=False)
    optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
    losses.total, losses.n = state["losses"]
    return AlignedNet(**state["so_far"])


@contextmanager
def _forked(device: str) -> Iterator[None]:
    """Leave the global random state as it was."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
