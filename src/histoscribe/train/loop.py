"""The training of one net, on Lightning.

Whatever is random in a step (dropout, the order of bags) is drawn from the seed of the net and
the number of the step or epoch, so that a fit that was killed goes on to the very same weights.
"""

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int64
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, DataError
from histoscribe.models.predictor import Streamed
from histoscribe.models.stream import BagStream
from histoscribe.train.assemble import AssembledBags
from histoscribe.train.draw import BagOrder, Bags, HeldOut, Portion, mix
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.losses import expression_loss, objective
from histoscribe.train.net_task import DivergenceError, Epoch, FitLog, FittedNet, NetTask
from histoscribe.train.processes import find_processes, weigh_loss
from histoscribe.train.state import SafetensorsCheckpointIO, read_state, write_state

SCORE = {"gene_pcc": "held_out_gene_pcc", "loss": "minus_held_out_loss"}
"""Names of the held-out score by what nets stop on."""


class NetModule(pl.LightningModule):
    """A net, its objective and its score on the held-out slides."""

    def __init__(
        self, net: nn.Module, assembled: AssembledBags, task: NetTask, config: FitConfig
    ) -> None:
        super().__init__()
        self.net, self.config, self.seed = net, config, task.seed
        self.processes = find_processes()
        self.score_name = name_score(config)
        self.held_out_slide = group_for_scoring(assembled)[task.held_out]
        self.target = assembled.scaling.target
        self.outputs: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.losses: list[Tensor] = []
        self.stream: BagStream | None = None

    def on_train_batch_start(self, batch: BagBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Set dropout's stream by the step; the caller has forked the global state."""
        torch.manual_seed(mix(self.seed, self.global_step, 2))

    def training_step(self, batch: BagBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of one batch."""
        weight = self.config.cluster_weight or 0.0
        loss = objective(self.net, batch, weight, self.target)["loss"]
        self.losses.append(loss.detach())
        assert batch.target is not None
        seen = batch.target.numel() if batch.is_observed is None else batch.is_observed.sum()
        return weigh_loss(loss, seen, self.processes)

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the epoch before."""
        self.losses.clear()

    def validation_step(self, batch: Portion, batch_idx: int) -> None:  # noqa: ARG002
        """Keep the answers; they are scored together."""
        self.keep_answer(batch)

    def on_validation_epoch_end(self) -> None:
        """Score the held-out regions."""
        size = len(self.held_out_slide)
        self.log(self.score_name, self.score_answers(), batch_size=size)
        if self.losses:
            self.log("train_loss", torch.stack(self.losses).mean(), batch_size=size)

    def keep_answer(self, portion: Portion) -> None:
        """Answer some held-out bags; one that comes in portions, once its last has come."""
        batch = portion.batch
        if portion.is_whole:
            answer = self.net(batch)
        else:
            assert isinstance(self.net, Streamed)
            self.stream = self.stream or self.net.stream(1)
            self.stream.add(batch)
            if not portion.is_last:
                return
            answer, self.stream = self.stream.answer(), None
        assert batch.target is not None
        self.outputs.append((answer.cpu(), batch.target.cpu(), _to_cpu(batch.is_observed)))

    def score_answers(self) -> float:
        """How good the answers are; higher is better.

        The loss with a minus, or the mean per-gene PCC within each held-out slide (over all
        patients, for bulk), mean over slides; z-scores do as well. NaN if an answer is no number.
        """
        answer = torch.cat([a for a, _, _ in self.outputs])
        target = torch.cat([t for _, t, _ in self.outputs])
        seen = [o for _, _, o in self.outputs if o is not None]
        is_observed = torch.cat(seen) if seen else torch.ones_like(target, dtype=torch.bool)
        self.outputs.clear()
        if not bool(torch.isfinite(answer).all()):
            return math.nan  # a correlation would pass over it
        if self.config.stop_on == "loss":
            return -float(expression_loss(answer, target, is_observed))
        scores = [
            mean_gene_pcc(answer[rows], target[rows], is_observed[rows])
            for rows in (self.held_out_slide == s for s in self.held_out_slide.unique())
        ]
        return float(np.mean(scores))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on all that is trainable."""
        trainable = [p for p in self.net.parameters() if p.requires_grad]
        config = self.config
        return torch.optim.AdamW(
            trainable, lr=config.learning_rate, weight_decay=config.weight_decay
        )


class KeepBest(Callback):
    """Holds the weights of the best epoch in memory and in the state of the fit."""

    def __init__(self) -> None:
        self.score, self.epoch = -math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, and copy if better."""
        assert isinstance(pl_module, NetModule)
        score = float(trainer.callback_metrics[pl_module.score_name])
        self.consider(pl_module.net, score, trainer.current_epoch + 1)

    def consider(self, net: nn.Module, score: float, epoch: int) -> None:
        """Copy the weights of the net if it is better than any before."""
        if not math.isfinite(score):
            raise DivergenceError(
                f"the net diverged in epoch {epoch} (score {score}); lower the "
                "learning rate or check the features for outliers"
            )
        if score > self.score:
            self.score, self.epoch = score, epoch
            state = net.state_dict()
            self.weights = {name: t.detach().cpu().clone() for name, t in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """For Lightning."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For Lightning."""
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = dict(state_dict["weights"])


class KeepState(Callback):
    """Writes the state of the fit at the end of an epoch, now and then, and reports the epoch."""

    def __init__(self, path: Path | None, task: NetTask, log: FitLog) -> None:
        self.path, self.task, self.settings = path, task, log
        self.written_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the held-out score of the epoch."""
        is_due = time.monotonic() - self.written_at >= self.settings.every_s
        if self.path and trainer.strategy.broadcast(is_due):  # all processes, or none of them
            trainer.save_checkpoint(self.path)
            self.written_at = time.monotonic()
        if self.settings.on_epoch and trainer.is_global_zero:
            assert isinstance(pl_module, NetModule)
            score = float(trainer.callback_metrics[pl_module.score_name])
            epoch, most = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
            self.settings.on_epoch(Epoch(self.task.net, self.task.n_nets, epoch, most, score))


def train_net(
    net: nn.Module,
    assembled: AssembledBags,
    task: NetTask,
    config: FitConfig,
    log: FitLog,
    *,
    is_start: bool = False,
) -> FittedNet:
    """Train one net until its held-out score no longer rises; its best weights come back.

    A net that was finished before, or a state that was left by a kill, is taken up where the log
    has a folder and the key of the fit is the same.

    Args:
        net: The net, with the weights to begin with.
        assembled: All training bags.
        task: Which of them are for what.
        config: How.
        log: Where to write and whom to tell.
        is_start: The net has learned elsewhere: as it is, it may be the best, as epoch 0.

    Raises:
        DivergenceError: If the net diverged.
    """
    finished = state = None
    processes = find_processes()
    if log.folder is not None:
        place = log.folder / "state" / task.key
        finished, state = place / f"net{task.net}.safetensors", place / f"net{task.net}.running"
        if finished.exists():
            return FittedNet(**read_state(finished))
    best = KeepBest()
    module = NetModule(net, assembled, task, config)
    stop = EarlyStopping(
        name_score(config), mode="max", patience=config.patience, check_finite=False
    )
    with _quiet(), _forked(config.device):
        trainer = pl.Trainer(
            accelerator="gpu" if config.device == "cuda" else config.device,
            devices=processes.n_here,
            num_nodes=processes.n // processes.n_here,
            strategy="auto" if processes.n == 1 else "ddp",
            max_epochs=config.max_epochs,
            gradient_clip_val=config.clip_norm,
            logger=_loggers(log.folder, task),
            # The state is written last, when the other callbacks have had their say.
            callbacks=[best, stop, KeepState(state, task, log)],
            plugins=[SafetensorsCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10**9,  # epochs are logged, steps are not
            use_distributed_sampler=False,
            inference_mode=False,
        )
        order = BagOrder(len(task.train), config.batch_regions, task.seed, processes.n)
        resume = str(state) if state is not None and state.exists() else None
        if resume is not None:
            # Lightning draws the first batch of a resumed fit before it tells the epoch.
            order.set_epoch(read_state(Path(resume))["global_step"] // len(order))
        # A stream adds up in float64, which MPS lacks.
        is_streamed = isinstance(net, Streamed) and config.device != "mps"
        training, held_out = _loaders(assembled.batch, task, order, config, is_streamed=is_streamed)
        if is_start and resume is None:
            best.consider(net, _score_at_once(module, held_out), 0)
            stop.best_score = torch.tensor(best.score)
        with _interruptible():
            trainer.fit(module, training, held_out, ckpt_path=resume)
        n_epochs = trainer.current_epoch
    fitted = FittedNet(best.weights, best.epoch, best.score, n_epochs)
    if finished is not None and state is not None and processes.is_first:
        write_state(
            {
                "weights": fitted.weights,
                "best_epoch": fitted.best_epoch,
                "best_score": fitted.best_score,
                "n_epochs": fitted.n_epochs,
            },
            finished,
        )
        state.unlink(missing_ok=True)
    return fitted


def mean_gene_pcc(
    answer: Float[Tensor, "region gene"],
    target: Float[Tensor, "region gene"],
    is_observed: Tensor,
) -> float:
    """Mean over genes of the Pearson correlation over regions; constant targets do not count."""
    weight = is_observed.double()
    n = weight.sum(0).clamp(min=1)

    def centre(values: Tensor) -> Tensor:
        values = torch.where(is_observed, values.double(), 0.0)
        return torch.where(is_observed, values - values.sum(0) / n, 0.0)

    x, y = centre(answer), centre(target)
    xx, yy = (x * x).sum(0), (y * y).sum(0)
    counts = (yy / n) > 1e-12
    if not bool(counts.any()):
        raise DataError("no gene of the panel varies over the held-out slide; take other genes")
    norm = (xx * yy).sqrt()
    r = torch.where(norm > 0, (x * y).sum(0) / norm.clamp(min=1e-300), 0.0)
    return float(r[counts].mean())


def name_score(config: FitConfig) -> str:
    """What the held-out score is called; higher is better."""
    if config.stop_on is None:
        raise ConfigError("fit.stop_on is not resolved; call resolve() first")
    return SCORE[config.stop_on]


def group_for_scoring(assembled: AssembledBags) -> Int64[Tensor, " bag"]:
    """Bags over which a gene is correlated: those of a slide; all, where a slide has but one."""
    slide = torch.from_numpy(assembled.slide_of_bag)
    is_whole = all(len(part.regions) == 1 for part in assembled.slides)
    return torch.zeros_like(slide) if is_whole else slide


def _score_at_once(module: NetModule, held_out: DataLoader[Portion]) -> float:
    """The score of a net before it is trained."""
    module.net.eval()
    with torch.no_grad():
        for portion in held_out:
            module.keep_answer(portion)
    module.net.train()
    return module.score_answers()


def _loaders(
    batch: BagBatch, task: NetTask, order: BagOrder, config: FitConfig, *, is_streamed: bool
) -> tuple[DataLoader[BagBatch], DataLoader[Portion]]:
    generator = torch.Generator().manual_seed(task.seed)
    training = Bags(batch, config.blocks_in_training, find_processes(), task.train)
    held_out = Bags(batch, config.blocks_in_scoring, rows=task.held_out)
    return (
        DataLoader(training, batch_size=None, sampler=order, generator=generator),
        DataLoader(
            HeldOut(held_out, task.seed, is_streamed=is_streamed),
            batch_size=None,
            generator=generator,
        ),
    )


def _loggers(folder: Path | None, task: NetTask) -> list[Logger] | bool:
    if folder is None:
        return False
    name = f"net{task.net}"
    return [
        CSVLogger(folder / "logs", name="csv", version=name, flush_logs_every_n_steps=10**9),
        TensorBoardLogger(folder / "logs", name="tensorboard", version=name),
    ]


@contextmanager
def _forked(device: str) -> Iterator[None]:
    """Leave the global random state as it was; of several processes, each takes its own GPU."""
    if device == "cuda" and torch.cuda.is_available() and find_processes().n > 1:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C out as what it is: Lightning ends the program for it and ignores the next."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice on hardware, workers and cloud services between the lines of our progress."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torch\.utils\.tensorboard.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _to_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
