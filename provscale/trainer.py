"""The training loop on Accelerate. It knows nothing of any data set, network or metric.

for every epoch:  for every global batch:  load -> synthesise -> step (loss, gradients) -> update
                  evaluate on validation, record the best epoch, checkpoint
at the end:       evaluate on test, with the final weights and with those of the best epoch
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from provscale.build import build_data, build_network, build_step, build_training_data
from provscale.config import Config
from provscale.data.host_batch import HostSample
from provscale.data.loader import make_loader, worker_context
from provscale.data.plan import BatchPlan, MicroBatch
from provscale.engine import build_engine, check_supported
from provscale.errors import UserError
from provscale.evaluation.run import evaluate, sample_pictures
from provscale.fast_kernels import choose_fast_ways
from provscale.guidance.schedule import alpha_at
from provscale.guidance.self_check import self_check, unwrapped_copy
from provscale.guidance.split_batch import refuse_batch_statistics
from provscale.models import BuiltModel
from provscale.optim import build_optimizer, learning_rate, set_learning_rate
from provscale.randomness import numpy_generator, seed_everything
from provscale.run.checkpoint import BEST, FINAL, Checkpointer
from provscale.run.checkpoint_folder import Progress
from provscale.run.final_test import evaluate_best_and_last, localised_by_best
from provscale.run.gradient_watch import GradientWatch
from provscale.run.run_folder import RunFolder
from provscale.run.step_report import Readout, StepReport
from provscale.sample import Sample
from provscale.second_derivatives.recompute import recompute_activations
from provscale.signals import StopRequest
from provscale.synthesis.ablation import ablated
from provscale.synthesis.saliency import with_saliency


class Trainer:
    """Trains what a config describes; `fit` runs or resumes it to the end.

    Raises (constructor and `fit`):
        UserError: anything in config, data or checkpoint that cannot work.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.data.workers:
            worker_context()  # its server imports PyTorch while the rest is built here
        # Checked before anything is allocated.
        self.splits = build_data(config)
        data = build_training_data(config, self.splits)
        self.synthesis, self.train_items = data.synthesis, data.items
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
        built = build_network(config, self.splits.num_classes)
        check_supported(built.network, self.engine.world_size)
        self.step = build_step(config, built, data)
        choose_fast_ways(config, self.step, self.engine)
        self.prepare(built)
        self.checkpointer = Checkpointer(self.engine, config)
        self.stop_request = StopRequest()
        self.stopping = self.finished = False
        self.reports: deque[StepReport] = deque()
        # On CUDA a step is looked at when the next one is queued, or the device would run dry at every step.
        self.unread = int(self.engine.device.type == "cuda")

    def prepare(self, built: BuiltModel) -> None:
        """Hands step and optimizer to the engine; keeps a copy of the step for the self-check."""
        config = self.config
        if config.guidance.split_batch:
            built.network.train()
            refuse_batch_statistics(built.network)
        # The copy first: it shall show ordinary double backward.
        reference = unwrapped_copy(self.step) if config.train.self_check else None
        if config.train.checkpoint_activations:
            recompute_activations(built.network)
        optimizer = build_optimizer(built.network.named_parameters(), built.new_parameters, config.optim)
        self.total_parameters = sum(parameter.numel() for parameter in self.step.parameters())  # before sharding
        self.engine.prepare(self.step, optimizer)
        self.reference = reference.to(self.engine.device) if reference is not None else None

    def fit(self) -> Progress:
        """Trains to the end, or until asked to stop; `finished` tells which."""
        config, engine = self.config, self.engine
        with self.stop_request, RunFolder(engine, config) as folder:
            self.progress = self.checkpointer.resume()
            if self.progress.step >= self.total_steps:
                engine.print(f"{config.folder} has finished already; what follows writes its summary and report again")
            engine.print(f"{config.model.name}: {self.total_parameters / 1e6:.2f} million parameters")
            self.folder = folder
            self.gradients = GradientWatch(
                engine, config, self.progress, self.plan.steps_per_epoch, self.may_guide, folder.log
            )
            if self.splits.selected_on == "test":
                engine.print(
                    "there is no validation split: the best epoch is chosen on test, so its metrics are optimistic; "
                    "data.validation_share holds out a share of train"
                )
            if self.reference is not None and self.progress.step < self.total_steps:
                self.check()
            folder.open_trackers(self.progress.step, self.total_steps)
            self.last_end, self.waited = time.monotonic(), 0.0
            self.clock = self.last_end - self.progress.seconds
            self.finished = self.run_epochs() and self.finish()
        return self.progress

    def run_epochs(self) -> bool:
        """Returns False when training was asked to stop; a checkpoint of that moment is on disk then."""
        for epoch, group in self.global_batches():
            self.optimizer_step(epoch, group)
            ends_epoch = self.progress.step % self.plan.steps_per_epoch == 0
            ends_training = self.progress.step == self.total_steps
            evaluates = (ends_epoch and (epoch + 1) % self.config.evaluation.every_epochs == 0) or ends_training
            every = self.config.checkpoint.every_steps
            due = (self.progress.step % every == 0 if every else ends_epoch) or ends_training
            if evaluates or due or self.stopping:
                # Nothing is evaluated or saved before every step up to it is known to be finite.
                self.read_reports(unread=0)
                self.log_reports()
            if evaluates:
                self.evaluate(epoch)
            if due or self.stopping:
                self.progress.seconds = time.monotonic() - self.clock
                self.folder.sync()
                self.checkpointer.save(self.progress)
                self.last_end = time.monotonic()
            if self.stopping and not ends_training:
                self.engine.print(f"asked to stop: checkpoint of step {self.progress.step} is written")
                return False
        return True

    def global_batches(self) -> Iterator[tuple[int, list[tuple[MicroBatch, HostSample]]]]:
        """Epoch and loaded micro-batches of each optimizer step to come.

        One loader for all epochs: its processes start once, and load the next epoch's first batches during evaluation.
        """
        upcoming, ahead = itertools.tee(self.plan.upcoming(self.progress.step, self.total_steps))
        keys = ([(epoch, index) for index in micro.indices] for epoch, micro in ahead)
        loader = make_loader(self.train_items, keys, self.config.data.workers, self.engine.device.type == "cuda")
        group: list[tuple[MicroBatch, HostSample]] = []
        for epoch, micro in upcoming:
            started = time.monotonic()
            group.append((micro, next(loader)))
            self.waited += time.monotonic() - started
            if micro.last:
                yield epoch, group
                group = []

    def optimizer_step(self, epoch: int, group: list[tuple[MicroBatch, HostSample]]) -> None:
        """One global batch: every micro-batch's gradients, then one update; all processes agree that it is finite."""
        config, engine, step = self.config, self.engine, self.progress.step
        rate = learning_rate(config.optim, step, self.total_steps)
        set_learning_rate(engine.optimizer, rate)
        samples: Iterator[Sample] = (self.synthesise(loaded.to(engine.device), micro, epoch) for micro, loaded in group)
        if self.gradients.measures(epoch):
            whole = list(samples)
            self.gradients.measure(whole)
            samples = iter(whole)
        alpha = alpha_at(step, self.gradients.weight, config.guidance.every)
        mean: dict[str, Tensor] = {}
        micro_batches = [micro for micro, _ in group]
        size = sum(micro.size for micro in micro_batches) * engine.world_size
        # Edits come after the real items; those whose mask has one value are no longer synthetic.
        real = len(self.splits.train)
        unguided = sum(int(((loaded.index >= real) & ~loaded.is_synthetic).sum()) for _, loaded in group)
        for number, (micro, sample) in enumerate(zip(micro_batches, samples, strict=True)):
            seed_everything(config.seed, "step", step, number * engine.world_size + engine.rank)
            if number == 0 and self.gradients.looks(epoch):
                self.gradients.log(sample, epoch)
            with engine.accumulate():
                losses = engine.losses(sample, alpha)
                engine.backward(losses["loss"])
                for name, value in losses.items():
                    mean[name] = mean.get(name, 0.0) + value.detach().double() / len(group)
                if micro.last:
                    further = (unguided * engine.world_size, self.stop_request.asked)
                    mine = torch.stack([*mean.values(), *(torch.full_like(mean["loss"], value) for value in further)])
                    agreed = engine.mean(mine)
                    report = StepReport(step, epoch, rate, micro_batches, tuple(mean), mine, Readout(agreed), size)
                    self.reports.append(report)
                    self.read_reports(self.unread)
                    # Read a step late; so the device itself leaves an update out that would spoil the weights.
                    engine.update(skip=(~torch.isfinite(agreed[0])).float())
                else:
                    engine.update()
        # In every step, although once before each evaluation and checkpoint would give the same but for rounding: a
        # checkpoint at a moment that nobody has planned must leave the bits as they would be without it.
        engine.average_buffers()
        self.progress.step = step + 1
        now = time.monotonic()
        report.seconds, report.waited = now - self.last_end, self.waited
        self.last_end, self.waited = now, 0.0
        self.log_reports()

    def read_reports(self, unread: int) -> None:
        """Reads what the newest steps came to, all but `unread` of them.

        Raises UserError on every process when a loss is not finite.
        """
        for report in list(self.reports)[: len(self.reports) - unread]:
            if not report.losses:
                stops = report.read()
                before = self.progress.unguided_edits if report.step % self.plan.steps_per_epoch else 0
                self.progress.unguided_edits = before + report.unguided
                report.refuse_unless_finite(self.engine, self.train_items.source, self.checkpointer.last)
                self.stopping = self.stopping or stops

    def log_reports(self) -> None:
        """Writes the rows of the steps that have been read."""
        while self.reports and self.reports[0].losses:
            report = self.reports.popleft()
            self.folder.log_step(report.row(), last=report.step + 1 == self.total_steps)

    def synthesise(self, sample: Sample, micro: MicroBatch, epoch: int) -> Sample:
        """Mixes or edits a loaded micro-batch; everything random is keyed by seed, epoch, step and index."""
        guidance, key = self.config.guidance, (self.config.seed, epoch)
        partners = None
        if self.synthesis.pairs:
            if not self.mixes(epoch, micro.step):
                return sample[: micro.size]
            sample = with_saliency(self.engine, self.synthesis, sample)
            partners = sample[torch.tensor(micro.partners)]
        local = self.synthesis(sample[: micro.size], partners, key)
        return ablated(local, guidance.mask, guidance.dilation, key)

    def mixes(self, epoch: int, step: int) -> bool:
        """Whether a mixing synthesis mixes this batch: one decision per global batch, as in CutMix's own training."""
        options = self.config.synthesis
        if epoch < options.start_epoch:
            return False
        return numpy_generator(self.config.seed, epoch, "mixes", step).uniform() < options.probability

    def may_guide(self, epoch: int, step: int) -> bool:
        """Whether a step of an epoch has synthetic samples; with edits any may."""
        return not self.synthesis.pairs or self.mixes(epoch, step)

    def evaluate(self, epoch: int) -> None:
        """Computes the metrics that select, records the best epoch and its weights, saves pictures."""
        splits, progress = self.splits, self.progress
        started = time.monotonic()
        metrics = evaluate(self.engine, splits, splits.selected_on, self.config)
        best = splits.best
        if best not in metrics:
            raise UserError(f"evaluation.best: '{best}' is not among the metrics: {', '.join(metrics)}")
        progress.last_step, progress.last_metrics = progress.step, metrics
        if not math.isnan(metrics[best]) and (progress.best_value is None or metrics[best] > progress.best_value):
            progress.best_value, progress.best_metrics = metrics[best], metrics
            progress.best_epoch, progress.best_step = epoch + 1, progress.step
            self.checkpointer.save_weights(BEST)
        row = {"kind": "validation", "split": splits.selected_on, "step": progress.step, "epoch": epoch + 1, **metrics}
        self.folder.log("validation", row)
        peak = (
            "" if progress.best_value is None else f" (best {progress.best_value:.2f} in epoch {progress.best_epoch})"
        )
        self.engine.print(f"epoch {epoch + 1}: {best} {metrics[best]:.2f}{peak}, {time.monotonic() - started:.1f} s")
        if progress.unguided_edits:
            self.engine.print(
                f"epoch {epoch + 1}: {progress.unguided_edits} edits have a mask of one value; they were trained on "
                "without guidance"
            )
        if remark := self.synthesis.remark():
            self.engine.print(remark)
        if count := self.config.tracking.images:
            pictures = sample_pictures(self.engine, self.train_items, self.synthesis, splits, count)
            if pictures is not None:
                self.folder.save_pictures(pictures, progress.step)
        self.last_end = time.monotonic()

    def finish(self) -> bool:
        """Writes the final weights, the test metrics, summary and report.

        Returns False when asked to stop before the test metrics are there: started again, the run goes on here.
        """
        progress = self.progress
        self.checkpointer.save_weights(FINAL)
        tested = evaluate_best_and_last(
            self.engine, self.config, self.splits, self.checkpointer, progress, self.stop_request
        )
        if tested is None:
            return False
        epochs = {"last": -(-progress.step // self.plan.steps_per_epoch), "best": progress.best_epoch}
        for at, metrics in tested.items():
            row = {"kind": "test", "at": at, "step": progress.step, "epoch": epochs[at], **metrics}
            self.folder.log(f"test_{at}", row)
        shown = localised_by_best(self.engine, self.config, self.splits, self.checkpointer, progress)
        self.folder.save_localised(shown, progress.step)
        self.folder.finish(progress, self.splits, tested, self.total_parameters)
        return True

    def check(self) -> None:
        """The start-up self-check on a guided micro-batch, if one is near; leaves no trace in what follows."""
        assert self.reference is not None
        epoch, first = divmod(self.progress.step, self.plan.steps_per_epoch)
        near = 1 if self.config.synthesis.name == "none" else 16
        for micro in islice(self.plan.micro_batches(epoch, first), near):
            (loaded,) = make_loader(self.train_items, [[(epoch, index) for index in micro.indices]], 0, False)
            sample = self.synthesise(loaded.to(self.engine.device), micro, epoch)
            if sample.guided:
                break
        if self.progress.step:
            self.reference.network.load_state_dict(self.engine.network_state())
        self_check(self.engine, self.step, self.reference, sample, (self.config.seed, -1, self.engine.rank))
        self.reference = None
