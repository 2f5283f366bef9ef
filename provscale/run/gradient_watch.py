"""What the gradients of L_cls and of L_PG say on the way: a row per epoch, and the weight of `guidance.alpha_rule`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from provscale.config import Config
from provscale.engine import Engine
from provscale.guidance.alpha_rule import gradient_lengths, gradient_scale, weight_of
from provscale.run.checkpoint_folder import Progress
from provscale.sample import Sample

GRADIENT_SAMPLES = 16
"""Samples per process on which an epoch's row is measured."""


class GradientWatch:
    """Looks at steps before they are done; what it measures leaves no trace in training but the weight.

    Args:
        progress: of the run; the rule's measurements are kept there, so a resumed run goes on with them.
        guides: whether optimizer step (epoch, step of the epoch), both from 0, may be guided, on any process.
        log: writes a row of metrics.jsonl.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        progress: Progress,
        steps_per_epoch: int,
        guides: Callable[[int, int], bool],
        log: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.engine, self.config, self.progress = engine, config, progress
        self.steps_per_epoch, self.guides, self.log_row = steps_per_epoch, guides, log

    @property
    def weight(self) -> float:
        """The weight of L_PG in a guided step."""
        guidance = self.config.guidance
        if guidance.alpha_rule == "fixed":
            return guidance.alpha
        return weight_of(guidance.alpha, self.progress.gradient_scales)

    def measures(self, epoch: int) -> bool:
        """Whether the coming step is one of the first guided ones, which the rule measures."""
        guidance, step = self.config.guidance, self.progress.step
        wanted = guidance.alpha > 0 and guidance.alpha_rule != "fixed"
        missing = len(self.progress.gradient_scales) < guidance.alpha_steps
        return wanted and missing and step % guidance.every == 0 and self.guides(epoch, step % self.steps_per_epoch)

    def measure(self, samples: Sequence[Sample]) -> None:
        """Adds what this step's whole batch says: `samples` are its micro-batches on this process."""
        guidance, step = self.config.guidance, self.progress.step
        scale = gradient_scale(gradient_lengths(self.engine, samples, (self.config.seed, "step", step)))
        if scale is not None:
            self.progress.gradient_scales.append(scale)
            if len(self.progress.gradient_scales) == guidance.alpha_steps:
                self.engine.print(
                    f"guidance.alpha_rule: the weight of L_PG is {self.weight:.4g} from step {step + 1} on"
                )

    def looks(self, epoch: int) -> bool:
        """Whether the coming step is an epoch's first that may be guided."""
        if not (self.config.tracking.gradients and self.config.guidance.alpha):
            return False
        here = self.progress.step % self.steps_per_epoch
        return self.guides(epoch, here) and not any(self.guides(epoch, step) for step in range(here))

    def log(self, sample: Sample, epoch: int) -> None:
        """Writes how long both gradients are: at a ratio of 0.01 guidance is asleep, at 10 it drowns the task."""
        step = self.progress.step
        lengths = gradient_lengths(self.engine, [sample[:GRADIENT_SAMPLES]], (self.config.seed, "step", step))
        ratio = self.weight * lengths["gradient_norm_guidance"] / max(lengths["gradient_norm_cls"], 1e-30)
        row = {"kind": "gradients", "step": step + 1, "epoch": epoch + 1, **lengths}
        self.log_row("gradients", {**row, "alpha": self.weight, "gradient_ratio": ratio})
