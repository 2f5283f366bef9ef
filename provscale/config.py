"""The config's keys, as dataclasses; each is documented here once, and `--help` prints these texts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from provscale.errors import UserError
from provscale.guidance.options import GuidanceOptions


@dataclass
class RunConfig:
    """Where results go: <run.dir>/<run.name>/.

    Args:
        name: folder of this run, and its name in W&B.
        dir: folder of all runs.
        group: W&B group, usually the experiment; empty = none.
        tags: W&B tags, e.g. the paper's table row and the arm.
    """

    name: str = "run"
    dir: str = "runs"
    group: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass
class DataConfig:
    """Data set and batches.

    Args:
        name: digits, imagefolder, cub, cub_classification, waterbirds, iwildcam, ucf101_24, planted_actions or another
            registered data set.
        root: its folder; not needed for embedded data.
        batch_size: global batch of one optimizer step, divided over processes and accumulation.
        workers: loader processes for each training process.
        image_size: height and width of the network's input, in pixels.
        drop_last: leave out an epoch's last, short batch.
        validation_share: share of each class's training items to hold out, drawn by the seed, for choosing the best
            epoch; 0 = choose it on test; null = the data set's own validation split, or test where it has none.
        options: further settings of the data set; the end of this help says how to list them.
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 64
    workers: int = 0
    image_size: int = 224
    drop_last: bool = True
    validation_share: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """Network.

    Args:
        name: vgg16_cam, deit_small_sat, skp, stgcn, posec3d, plain_cnn or another registered model, or any timm model.
        pretrained: none, package (weights of an installed package), hub (timm's download) or a path (.safetensors,
            a PyTorch state dict, or a folder that tools/export.py wrote).
        channels_last: store convolutions' weights with channels last: the same numbers within rounding, for tensor
            cores; on a CPU double backward loses by it. null: on a GPU with train.precision bf16. ZeRO and FSDP2 store
            weights their own way and ignore it.
        options: further arguments of the model's constructor, e.g. drop_path_rate; listed as those of data sets.
    """

    name: str = "resnet18"
    pretrained: str = "none"
    channels_last: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SynthesisConfig:
    """How training samples are synthesised.

    Args:
        name: none, cutmix, resizemix, puzzlemix, batchmix, edited, annotated (no synthesis: training images guided by
            their own object masks) or another registered synthesis.
        probability: share of batches that are mixed (Table 8); edited images are synthetic always.
        start_epoch: epochs, from the first, in which nothing is mixed yet.
        added: how many edited images join the training set; null = all there are.
        options: further settings of the synthesis; listed as those of data sets.
    """

    name: str = "none"
    probability: float = 1.0
    start_epoch: int = 0
    added: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimConfig:
    """Optimizer and schedule.

    Args:
        name: sgd or adamw.
        lr: learning rate at the start.
        weight_decay: decay.
        momentum: of SGD; beta1 of AdamW.
        schedule: linear or cosine (to zero at the last step, a value every step) or constant.
        head_lr_multiplier: factor on the learning rate of new layers (those without pretrained weights).
        clip_norm: largest gradient norm; null = no clipping.
        class_weights: none or inverse_frequency (mean 1 over the training samples).
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    head_lr_multiplier: float = 1.0
    clip_norm: float | None = None
    class_weights: Literal["none", "inverse_frequency"] = "none"


@dataclass
class TrainConfig:
    """Length and precision.

    Args:
        epochs: passes over the training set.
        max_steps: stop after so many optimizer steps; the schedule ends there too. null = no limit.
        precision: no (FP32) or bf16. fp16 is refused: its loss scale would have to act inside the step.
        accumulation: micro-batches of one optimizer step on each process.
        self_check: compare the prepared step with an unwrapped copy before training.
        checkpoint_activations: recompute each block's activations instead of keeping them: less memory, more time.
        reduction: fp32, or bf16: DDP sends gradients between processes in bf16, which halves the bytes and rounds each
            to 8 bits; for nodes with a slow network between them.
        tf32: what may round FP32 operands to TF32 on a GPU: none, convolutions (PyTorch's default) or all (matrix
            products too).
        cudnn_benchmark: try cuDNN's convolution algorithms on each new shape and keep the fastest. The choice, and so
            the last digits, may differ from run to run.
    """

    epochs: int = 10
    max_steps: int | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulation: int = 1
    self_check: bool = True
    checkpoint_activations: bool = False
    reduction: Literal["fp32", "bf16"] = "fp32"
    tf32: Literal["none", "convolutions", "all"] = "convolutions"
    cudnn_benchmark: bool = True


@dataclass
class EvaluationConfig:
    """Metrics.

    Args:
        metrics: evaluators that run on validation after an epoch and on test at the end; empty = those of the data set.
        best: validation metric that decides the best epoch, higher is better; empty = that of the data set.
        every_epochs: epochs between evaluations; the last epoch is always evaluated.
        batch_size: samples of an evaluation batch on each process.
    """

    metrics: list[str] = field(default_factory=list)
    best: str = ""
    every_epochs: int = 1
    batch_size: int = 100


@dataclass
class TrackingConfig:
    """Logging.

    Args:
        trackers: what records rows besides metrics.jsonl and the terminal: wandb, tensorboard or another registered
            tracker.
        wandb: mode of the tracker wandb: online (falls back to offline without a login), offline or disabled.
        project: W&B project.
        log_every: optimizer steps between rows of metrics.jsonl.
        images: samples shown with mask and gradient map after every evaluation.
        localisation: images of the split that selects, shown at the end with score map, boxes and gradient map, where a
            metric localises; 0 = none. The same ones for the same seed.
        gradients: log once per epoch how long the gradients of L_cls and L_PG are, on a few samples.
    """

    trackers: list[str] = field(default_factory=lambda: ["wandb"])
    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: str = "provscale"
    log_every: int = 1
    images: int = 8
    localisation: int = 4
    gradients: bool = True


@dataclass
class CheckpointConfig:
    """Saving and resuming.

    Args:
        every_steps: optimizer steps between checkpoints; 0 = at the end of every epoch.
        keep: newest checkpoints that stay.
        resume: auto (newest complete checkpoint of this run), never (refuses a run folder in use) or a path.
    """

    every_steps: int = 0
    keep: int = 2
    resume: str = "auto"


@dataclass
class Config:
    """Everything a run depends on.

    Args:
        seed: seed of everything random.
        imports: modules of one's own that register parts, by name or by the path of a .py file; imported first.
    """

    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    imports: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def folder(self) -> Path:
        return Path(self.run.dir) / self.run.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def validate(config: Config) -> None:
    """Raises UserError for values and combinations that cannot work."""
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.image_size": config.data.image_size,
        "train.epochs": config.train.epochs,
        "train.accumulation": config.train.accumulation,
        "evaluation.every_epochs": config.evaluation.every_epochs,
        "evaluation.batch_size": config.evaluation.batch_size,
        "tracking.log_every": config.tracking.log_every,
        "checkpoint.keep": config.checkpoint.keep,
    }
    if config.train.max_steps is not None:
        positive["train.max_steps"] = config.train.max_steps
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{key}: is {value}, must be at least 1")
    not_negative = {
        "data.workers": config.data.workers,
        "optim.lr": config.optim.lr,
        "optim.weight_decay": config.optim.weight_decay,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "tracking.images": config.tracking.images,
        "tracking.localisation": config.tracking.localisation,
        "synthesis.added": config.synthesis.added or 0,
        "synthesis.start_epoch": config.synthesis.start_epoch,
    }
    for key, number in not_negative.items():
        if not 0 <= number < float("inf"):
            raise UserError(f"{key}: is {number}, must be 0 or more and finite")
    if not 0 <= config.synthesis.probability <= 1:
        raise UserError(f"synthesis.probability: is {config.synthesis.probability}, must be in [0, 1]")
    if config.data.validation_share is not None and not 0 <= config.data.validation_share < 1:
        raise UserError(f"data.validation_share: is {config.data.validation_share}, must be in [0, 1), or null")
    if not 0 <= config.optim.momentum < 1:
        raise UserError(f"optim.momentum: is {config.optim.momentum}, must be in [0, 1)")
    if config.optim.clip_norm is not None and config.optim.clip_norm <= 0:
        raise UserError(f"optim.clip_norm: is {config.optim.clip_norm}, must be above 0, or null for no clipping")
    if config.train.precision == "fp16":
        raise UserError(
            "train.precision: fp16 is not supported: its loss scale would have to act inside the step, before the "
            "gradients are carried; use bf16 or no"
        )
    if config.guidance.alpha > 0 and config.synthesis.name == "none":
        raise UserError(
            f"guidance.alpha: is {config.guidance.alpha} while synthesis.name is none, so nothing has provenance; "
            "choose a synthesis, or set guidance.alpha to 0"
        )
    if config.train.checkpoint_activations and config.guidance.executor not in ("auto", "eager"):
        raise UserError(
            f"train.checkpoint_activations: is true while guidance.executor is {config.guidance.executor}; recomputing "
            "needs guidance.executor eager"
        )
    if not config.run.name or config.run.name in (".", "..") or os.sep in config.run.name:
        raise UserError(f"run.name: is '{config.run.name}', must be one folder name")
