"""The training loop on Accelerate. It knows nothing of any data set, network or metric.

for every epoch:  for every global batch:  load -> synthesise -> step (loss, gradients) -> update
                  evaluate, record the best epoch, checkpoint
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from provscale.checkpoint import Checkpointer
from provscale.checkpoint_folder import Progress
from provscale.config import Config
from provscale.data import DATA_SETS
from provscale.data.base import LoadedItems, class_weights, make_loader, training_source
from provscale.data.plan import BatchPlan, MicroBatch
from provscale.engine import build_engine, check_supported
from provscale.errors import UserError
from provscale.evaluation import build_evaluators
from provscale.evaluation.run import evaluate, look
from provscale.guidance import GuidedStep
from provscale.guidance.recompute import recompute_activations
from provscale.guidance.schedule import alpha_at
from provscale.guidance.self_check import self_check, unwrapped_copy
from provscale.models import build_model
from provscale.optim import build_optimizer, learning_rate, set_learning_rate
from provscale.randomness import numpy_generator, seed_everything
from provscale.run_folder import RunFolder
from provscale.sample import Sample
from provscale.signals import StopRequest
from provscale.synthesis import build_synthesis, random_mask
from provscale.tracking import ProgressBar


class Trainer:
    """Trains what a config describes; `fit` runs or resumes it to the end.

    Raises (constructor and `fit`):
        UserError: anything in config, data or checkpoint that cannot work.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        # ---- data and synthesis: checked before anything is allocated --------------------------------------------
        self.splits = DATA_SETS[config.data.name](config.data, config.seed)
        self.synthesis = build_synthesis(config.synthesis)
        if config.synthesis.added is not None and not self.synthesis.uses_edits:
            raise UserError(
                f"synthesis.added: is {config.synthesis.added}, but synthesis.name {config.synthesis.name} adds no "
                "edited images; set it to null"
            )
        added = config.synthesis.added if self.synthesis.uses_edits else 0
        self.train_items = LoadedItems(
            training_source(self.splits, added, config.seed),
            self.synthesis.prepare,
            self.splits.train_transform,
            self.splits.num_classes,
            config.seed,
        )
        self.metrics = config.evaluation.metrics or list(self.splits.metrics)
        build_evaluators(self.metrics, self.splits.num_classes, self.splits.group_names)
        # ---- engine ----------------------------------------------------------------------------------------------
        self.engine = build_engine(config)
        self.plan = BatchPlan(
            len(self.train_items),
            config.data.batch_size,
            config.seed,
            self.engine.rank,
            self.engine.world_size,
            config.train.accumulation,
            config.data.drop_last,
            self.synthesis.pairs,
        )
        self.total_steps = self.plan.steps_per_epoch * config.train.epochs
        if config.train.max_steps is not None:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        # ---- network, step, optimizer ----------------------------------------------------------------------------
        seed_everything(config.seed, "initial weights")
        built = build_model(config.model, self.splits.num_classes)
        check_supported(built.network, self.engine.world_size)
        weights = None
        if config.optim.class_weights == "inverse_frequency":
            weights = class_weights(self.train_items.source, self.splits.num_classes)
        self.step = GuidedStep(
            built.network,
            config.guidance.alpha,
            reduction=config.guidance.reduction,
            mask=config.guidance.mask,
            precision=config.train.precision,
            class_weights=weights,
            executor=config.guidance.executor,
            sampled_term=config.guidance.sampled_term,
        )
        # The copy first: it shall show ordinary double backward.
        reference = unwrapped_copy(self.step) if config.train.self_check else None
        if config.train.checkpoint_activations:
            recompute_activations(built.network)
        optimizer = build_optimizer(built.network.named_parameters(), built.new_parameters, config.optim)
        self.total_parameters = sum(parameter.numel() for parameter in self.step.parameters())  # before sharding
        self.engine.prepare(self.step, optimizer)
        self.reference = reference.to(self.engine.device) if reference is not None else None
        # ---- run folder and progress -----------------------------------------------------------------------------
        self.checkpointer = Checkpointer(self.engine, config)
        self.stop_request = StopRequest()

    def fit(self) -> Progress:
        """Trains to the end, or until asked to stop (`Progress.step` tells which)."""
        config, engine = self.config, self.engine
        with self.stop_request, RunFolder(engine, config) as folder:
            self.progress = self.checkpointer.resume()
            if self.progress.step >= self.total_steps:
                engine.print(f"{config.folder} has finished already; what follows writes its summary and report again")
            self.folder = folder
            if self.reference is not None and self.progress.step < self.total_steps:
                self.check()
            folder.open_logs(self.progress.step)
            self.bar = ProgressBar(self.total_steps, self.progress.step, engine.is_main)
            try:
                self.last_end = time.monotonic()
                self.clock = self.last_end - self.progress.seconds
                finished = self.run_epochs()
            finally:
                self.bar.close()
            if finished:
                self.checkpointer.save_weights("final.safetensors")
                folder.finish(self.progress, self.total_parameters)
        return self.progress

    def run_epochs(self) -> bool:
        """Returns False when training was asked to stop; a checkpoint of that moment is on disk then."""
        while self.progress.step < self.total_steps:
            epoch, first = divmod(self.progress.step, self.plan.steps_per_epoch)
            for group in self.global_batches(epoch, first):
                self.optimizer_step(epoch, group)
                ends_epoch = self.progress.step % self.plan.steps_per_epoch == 0
                ends_training = self.progress.step == self.total_steps
                if (ends_epoch and (epoch + 1) % self.config.evaluation.every_epochs == 0) or ends_training:
                    self.evaluate(epoch)
                every = self.config.checkpoint.every_steps
                due = self.progress.step % every == 0 if every else ends_epoch
                if due or ends_training or self.stopping:
                    self.progress.seconds = time.monotonic() - self.clock
                    self.folder.sync()
                    self.checkpointer.save(self.progress)
                    self.last_end = time.monotonic()
                if self.stopping and not ends_training:
                    self.engine.print(f"asked to stop: checkpoint of step {self.progress.step} is written")
                    return False
                if ends_training:
                    break
        return True

    def global_batches(self, epoch: int, first_step: int) -> Iterator[list[tuple[MicroBatch, Sample]]]:
        """The micro-batches of each optimizer step of an epoch, loaded, from `first_step` on."""
        micro_batches = list(self.plan.micro_batches(epoch, first_step))
        # No more than training will use, so that no worker loads in vain.
        micro_batches = micro_batches[: (self.total_steps - self.progress.step) * self.config.train.accumulation]
        keys = [[(epoch, index) for index in micro.indices] for micro in micro_batches]
        loader = make_loader(self.train_items, keys, self.config.data.workers, self.engine.device.type == "cuda")
        group: list[tuple[MicroBatch, Sample]] = []
        for micro, sample in zip(micro_batches, loader, strict=True):
            group.append((micro, sample))
            if micro.last:
                yield group
                group = []

    def optimizer_step(self, epoch: int, group: list[tuple[MicroBatch, Sample]]) -> None:
        """One global batch: every micro-batch's gradients, then one update; all processes agree that it is finite."""
        config, engine, step = self.config, self.engine, self.progress.step
        started = time.monotonic()
        rate = learning_rate(config.optim, step, self.total_steps)
        set_learning_rate(engine.optimizer, rate)
        self.step.alpha = alpha_at(step, config.guidance.alpha, config.guidance.every)
        mean = torch.zeros(4, dtype=torch.float64, device=engine.device)
        for number, (micro, loaded) in enumerate(group):
            sample = self.synthesise(loaded.to(engine.device), micro, epoch)
            seed_everything(config.seed, "step", step, number * engine.world_size + engine.rank)
            with engine.accumulate():
                losses = engine.losses(sample)
                engine.backward(losses["loss"])
                parts = torch.stack([losses["loss"].detach(), losses["loss_cls"], losses["loss_guidance"]])
                mean[:3] += parts.double() / len(group)
                if micro.last:
                    mean[3] = float(self.stop_request.asked)
                    agreed = engine.mean(mean).tolist()
                    self.stop_unless_finite(agreed[0], mean, group, step)
                engine.update()
        engine.average_buffers()
        self.stopping = agreed[3] > 0
        self.progress.step = step + 1
        samples = sum(micro.size for micro, _ in group) * engine.world_size
        now = time.monotonic()
        row = {
            "kind": "train",
            "step": step + 1,
            "epoch": epoch + 1,
            "loss": agreed[0],
            "loss_cls": agreed[1],
            "loss_guidance": agreed[2],
            "lr": rate,
            "samples_per_second": samples / max(now - self.last_end, 1e-9),
            "data_wait": max(started - self.last_end, 0.0) / max(now - self.last_end, 1e-9),
        }
        self.last_end = now
        self.folder.log_step(row, last=step + 1 == self.total_steps)
        self.bar.show(step + 1, row)

    def synthesise(self, sample: Sample, micro: MicroBatch, epoch: int) -> Sample:
        """Mixes or edits a loaded micro-batch; everything random is keyed by seed, epoch, step and index."""
        config = self.config
        local = sample[: micro.size]
        key = (config.seed, epoch)
        if self.synthesis.pairs:
            # One decision a global batch, as CutMix's own training: all processes take it alike.
            mixes = numpy_generator(*key, "mixes", micro.step).uniform() < config.synthesis.probability
            partners = sample[torch.tensor(micro.partners, device=sample.inputs.device)]
            local = self.synthesis(local, partners, key) if mixes else local
        else:
            local = self.synthesis(local, None, key)
        if config.guidance.mask == "random" and local.guided:
            local = random_mask(local, key)
        return local

    def stop_unless_finite(
        self, loss: float, mine: torch.Tensor, group: list[tuple[MicroBatch, Sample]], step: int
    ) -> None:
        """Raises UserError on every process when the mean loss is not finite, naming the batch's files."""
        if loss == loss and abs(loss) != float("inf"):
            return
        names: list[str] = []
        if not bool(torch.isfinite(mine).all()):
            names = [self.train_items.source[index].name for micro, _ in group for index in micro.indices[: micro.size]]
        names = [name for part in self.engine.gather(names) for name in part]
        raise UserError(
            f"training: the loss is {loss} at step {step + 1}, nothing was updated; last checkpoint: "
            f"{self.checkpointer.last or 'none'}; lower guidance.alpha or optim.lr, or look at the batch: "
            + ", ".join(names)
        )

    def evaluate(self, epoch: int) -> None:
        """Computes the metrics, records the best epoch and its weights, saves pictures."""
        evaluators = build_evaluators(self.metrics, self.splits.num_classes, self.splits.group_names)
        config, progress = self.config, self.progress
        started = time.monotonic()
        metrics = evaluate(
            self.engine, self.splits, evaluators, config.evaluation.batch_size, config.data.workers, config.seed
        )
        best = config.evaluation.best or self.splits.best
        if best not in metrics:
            raise UserError(f"evaluation.best: '{best}' is not among the metrics: {', '.join(metrics)}")
        progress.last_metrics = metrics
        if not math.isnan(metrics[best]) and (progress.best_value is None or metrics[best] > progress.best_value):
            progress.best_value, progress.best_epoch, progress.best_metrics = metrics[best], epoch + 1, metrics
            self.checkpointer.save_weights("best.safetensors")
        row: dict[str, Any] = {"kind": "eval", "step": progress.step, "epoch": epoch + 1, **metrics}
        self.folder.write(row, "eval")
        peak = (
            "" if progress.best_value is None else f" (best {progress.best_value:.2f} in epoch {progress.best_epoch})"
        )
        self.engine.print(f"epoch {epoch + 1}: {best} {metrics[best]:.2f}{peak}, {time.monotonic() - started:.1f} s")
        if config.tracking.images:
            pictures = look(self.engine, self.train_items, self.synthesis, self.splits, config.tracking.images)
            if pictures is not None:
                self.folder.save_pictures(pictures, progress.step)
        self.last_end = time.monotonic()

    def check(self) -> None:
        """The start-up self-check on a guided micro-batch, if one is near; leaves no trace in what follows."""
        assert self.reference is not None
        epoch, first = divmod(self.progress.step, self.plan.steps_per_epoch)
        for micro in islice(self.plan.micro_batches(epoch, first), 16):
            (loaded,) = make_loader(self.train_items, [[(epoch, index) for index in micro.indices]], 0, False)
            sample = self.synthesise(loaded.to(self.engine.device), micro, epoch)
            if sample.guided:
                break
        if self.progress.step:
            self.reference.network.load_state_dict(self.engine.network_state())
        self_check(self.engine, self.step, self.reference, sample, (self.config.seed, -1, self.engine.rank))
        self.reference = None
