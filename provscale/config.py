"""The config: dataclasses <- YAML (`--cfg`) <- command line (`--guidance.alpha 0.05`), checked before anything runs.

Every key is documented here once; `--help` prints these texts. A mistake raises UserError with one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from provscale.errors import UserError
from provscale.registry import nearest


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
        name: data set.
        root: its folder; not needed for embedded data.
        batch_size: global batch of one optimizer step, divided over processes and accumulation.
        workers: loader processes for each training process.
        image_size: height and width of the network's input, in pixels.
        drop_last: leave out an epoch's last, short batch.
        options: further settings of the data set.
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 64
    workers: int = 0
    image_size: int = 224
    drop_last: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """Network.

    Args:
        name: a registered model, or any timm model.
        pretrained: none, package (weights of an installed package), hub (timm's download) or a path (.safetensors
            or a PyTorch state dict).
        options: further arguments of the model's constructor, e.g. drop_path_rate.
    """

    name: str = "resnet18"
    pretrained: str = "none"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SynthesisConfig:
    """How training samples are synthesised.

    Args:
        name: none, cutmix, resizemix, edited or another registered synthesis.
        probability: share of batches that are mixed (Table 8); edited images are synthetic always.
        added: how many edited images join the training set; null = all there are.
        options: further settings of the synthesis.
    """

    name: str = "none"
    probability: float = 1.0
    added: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class GuidanceConfig:
    """Eq. 1: L = L_cls + alpha * L_PG.

    Args:
        alpha: weight of the guidance loss; 0 is the baseline arm.
        executor: how the step runs.
        mask: provenance (the method), random (ablation: the mask moved to a random place) or none (ablation).
        reduction: sum or mean of the squared gradient over one sample's elements.
    """

    alpha: float = 0.0
    executor: str = "eager"
    mask: Literal["provenance", "random", "none"] = "provenance"
    reduction: Literal["sum", "mean"] = "sum"


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
    """

    epochs: int = 10
    max_steps: int | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulation: int = 1
    self_check: bool = True


@dataclass
class EvaluationConfig:
    """Metrics.

    Args:
        metrics: evaluators that run on the evaluation split; empty = those of the data set.
        best: metric that decides the best epoch, higher is better; empty = that of the data set.
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
        wandb: online (falls back to offline without a login), offline or disabled.
        project: W&B project.
        log_every: optimizer steps between rows of metrics.jsonl.
        images: samples shown with mask and gradient map after every evaluation.
    """

    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: str = "provscale"
    log_every: int = 1
    images: int = 8


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
    """Everything a run depends on."""

    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
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


def all_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every key a config accepts, dotted, e.g. `guidance.alpha`."""
    keys = []
    for entry in fields(cls):
        # With postponed annotations a field's type is its name; nested configs are this module's dataclasses.
        nested = globals().get(str(entry.type))
        if nested is not None and is_dataclass(nested):
            keys += all_keys(nested, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            keys.append(prefix + entry.name)
    return keys


def build_parser() -> ArgumentParser:
    """The command line: `--cfg FILE` and one option for every key."""
    parser = ArgumentParser(
        prog="train.py",
        exit_on_error=False,
        description="Trains with provenance guidance. Start it with `accelerate launch`.",
    )
    parser.add_argument("--cfg", action="config", help="YAML file; options after it override its keys.")
    for entry in fields(Config):
        nested = globals().get(str(entry.type))
        if nested is not None and is_dataclass(nested):
            parser.add_class_arguments(nested, entry.name)
        else:
            parser.add_argument(f"--{entry.name}", type=int, default=entry.default, help="Seed of everything random.")
    return parser


def parse(arguments: list[str]) -> Config:
    """Reads the command line (without the program's name).

    Raises:
        UserError: unreadable file, unknown key, wrong type, or a combination that cannot work.
        SystemExit: with code 0, after `--help`.
    """
    check_files(arguments)
    check_options(arguments)
    parser = build_parser()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            namespace = parser.parse_args(arguments)
            namespace = parser.instantiate_classes(namespace)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError("command line: could not be read; see --help") from error
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError and NSKeyError alike
        raise UserError(explain(str(error))) from None
    config = to_config(namespace)
    validate(config)
    return config


def to_config(namespace: Namespace) -> Config:
    return Config(**{entry.name: namespace[entry.name] for entry in fields(Config)})


def check_files(arguments: list[str]) -> None:
    """Raises UserError when a `--cfg` file is missing, unreadable, not YAML, or has an unknown key."""
    known = all_keys()
    for position, word in enumerate(arguments):
        if word == "--cfg" or word.startswith("--cfg="):
            path = word[6:] if "=" in word else (arguments[position + 1] if position + 1 < len(arguments) else "")
            try:
                content = yaml.safe_load(Path(path).read_text())
            except OSError as error:
                raise UserError(f"--cfg {path or '(nothing)'}: cannot be read ({error.strerror})") from None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                first = str(error).replace("\n", " ")
                raise UserError(f"--cfg {path}: is not valid YAML: {first}") from None
            if not isinstance(content, dict):
                raise UserError(f"--cfg {path}: holds {type(content).__name__}, must be a mapping of keys") from None
            for key in flat_keys(content, known):
                if key not in known:
                    raise UserError(f"--cfg {path}: unknown key '{key}'{near_key(key, known)}")


def near_key(key: str, known: list[str]) -> str:
    """The nearest valid key: of the whole dotted name, else of its last word."""
    whole = nearest(key, known)
    if whole:
        return whole
    last = {name.rsplit(".", 1)[-1]: name for name in known}
    close = nearest(key.rsplit(".", 1)[-1], list(last))
    return f", did you mean '{last[close.split(chr(39))[1]]}'?" if close else "; --help lists all keys"


def flat_keys(content: dict[str, Any], known: list[str], prefix: str = "") -> list[str]:
    """The dotted keys of a nested mapping; a value below a known key (such as `options`) is not descended into."""
    keys = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            keys += flat_keys(value, known, f"{key}.")
        elif not (value is None and any(other.startswith(f"{key}.") for other in known)):
            keys.append(key)
    return keys


def check_options(arguments: list[str]) -> None:
    """Raises UserError for an option that is no key of the config."""
    known = all_keys()
    groups = {key.split(".")[0] for key in known if "." in key}
    accepted = {*known, *groups, "cfg", "help", "print_config"}
    for word in arguments:
        if not word.startswith("--") or word == "--":
            continue
        key = word[2:].split("=")[0].removesuffix("+")
        inside_options = any(key.startswith(f"{name}.") for name in known if name.endswith(".options"))
        if key not in accepted and not inside_options:
            raise UserError(f"command line: unknown key '{key}'{near_key(key, known)}")


def explain(message: str) -> str:
    """One line from a parser's message: which key, what was found, what is allowed."""
    text = re.sub(r"\s+", " ", message).strip()
    found = re.search(r'key "([^"]+)":?\s*(.*)', text)
    return f"{found.group(1)}: {found.group(2)[:300]}" if found else f"command line: {text[:300]}"


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
        "guidance.alpha": config.guidance.alpha,
        "optim.lr": config.optim.lr,
        "optim.weight_decay": config.optim.weight_decay,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "tracking.images": config.tracking.images,
        "synthesis.added": config.synthesis.added or 0,
    }
    for key, number in not_negative.items():
        if not 0 <= number < float("inf"):
            raise UserError(f"{key}: is {number}, must be 0 or more and finite")
    if not 0 <= config.synthesis.probability <= 1:
        raise UserError(f"synthesis.probability: is {config.synthesis.probability}, must be in [0, 1]")
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
    if not config.run.name or config.run.name in (".", "..") or os.sep in config.run.name:
        raise UserError(f"run.name: is '{config.run.name}', must be one folder name")
