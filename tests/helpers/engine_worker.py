"""What every process of an engine test runs: `accelerate launch --config_file X engine_worker.py FOLDER TASK...`.

Each task leaves FOLDER/<task>.pt, written by the main process; `test_engines.py` compares them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from networks import CLASSES, losses_of_its_own, random_sample, small_cnn, small_sat, small_vgg_cam, small_vit
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from provscale.config import Config
from provscale.data.plan import BatchPlan
from provscale.engine import Engine, build_engine
from provscale.errors import UserError
from provscale.guidance.alpha_rule import gradient_lengths
from provscale.guidance.self_check import self_check, unwrapped_copy
from provscale.guidance.step import GuidedStep
from provscale.models import MODELS as NETWORKS
from provscale.optim import build_optimizer, learning_rate, set_learning_rate
from provscale.sample import Sample

STEPS, BATCH, ALPHA = 3, 8, 0.5
UNIT_ROUNDOFF = 2.0**-24  # float32's largest relative error of one rounding
# The whole run has a smooth network on wide maps, for which every rounding error stays small (`exact`). A ReLU or a
# max-pooling jumps in its second derivative where rounding decides on which side of a kink a value lies, and BatchNorm
# over a handful of values (32 x 32 pixels end in one) multiplies errors by thousands.
SMOOTH = {"act_layer": "silu", "replace_stem_pool": True, "zero_init_last": False}
RUN = [
    "--data.name=digits", "--data.image_size=96", "--data.batch_size=16", "--synthesis.name=edited",
    "--data.options={train: 64, edits: 32, validation: 15, test: 15}", "--model.name=test_resnet",
    f"--model.options={SMOOTH}", "--guidance.alpha=0.01", "--train.epochs=1", "--checkpoint.every_steps=3",
    "--checkpoint.keep=9", "--tracking.wandb=disabled", "--evaluation.batch_size=5",
]  # fmt: skip


class SkeletonNetwork(nn.Module):
    """Coordinates [B, C, P, F, E] through an MLP on each person's frame, pooled over both."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3 * 5, 33), nn.LayerNorm(33), nn.GELU(), nn.Linear(33, 16), nn.Tanh())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.inner(inputs.permute(0, 2, 3, 1, 4).flatten(3)).mean(dim=(1, 2)))


def skeleton() -> nn.Module:
    torch.manual_seed(0)
    return SkeletonNetwork()


# `parity` predicts with the last one.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "own losses": losses_of_its_own, "cnn": small_cnn, "vit": small_vit,
    "sat": lambda: small_sat(drop_path_rate=0.0), "vgg cam": small_vgg_cam, "skeleton": skeleton,
}  # fmt: skip
CASES = [(model, targets, accumulation) for model in MODELS for targets in (1, 2) for accumulation in (1, 2)
         if model not in ("sat", "vgg cam") or targets == 2]  # fmt: skip


def training_set(model: str, targets: int, size: int = STEPS * BATCH) -> Sample:
    sample = random_sample(targets, size=32, batch=size, real=(1, 6))
    if model == "skeleton":
        generator = torch.Generator().manual_seed(1)
        sample.inputs = torch.randn(size, 3, 2, 4, 5, generator=generator)
        sample.provenance_mask = torch.randint(2, (size, 1, 2, 4, 5), generator=generator).float()
    return sample


def configure(model: str, accumulation: int, clip: float | None = None) -> Config:
    """SGD, and AdamW where no gradient vanishes identically (AdamW would blow up its rounding)."""
    config = Config()
    config.data.batch_size, config.train.accumulation = BATCH, accumulation
    config.optim.name = "adamw" if model == "skeleton" else "sgd"
    config.optim.lr = 0.003 if model == "skeleton" else 0.02
    config.optim.weight_decay, config.optim.head_lr_multiplier = 0.01, 2.0
    config.optim.clip_norm = clip
    return config


def channels_last_cnn() -> nn.Module:
    return small_cnn().to(memory_format=torch.channels_last)


def start(config: Config, network: nn.Module, check: Sample | None = None, split: bool = False) -> Engine:
    """A prepared engine; with a sample, after the trainer's self-check."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    engine = build_engine(config)
    step = GuidedStep(network, ALPHA, split_batch=split)
    reference = unwrapped_copy(step)
    head = frozenset(name for name, _ in list(network.named_parameters())[-2:])
    engine.prepare(step, build_optimizer(network.named_parameters(), head, config.optim))
    if check is not None:
        self_check(engine, step, reference, check, (0, engine.rank))
    return engine


def train(
    model: str, targets: int, accumulation: int, clip: float | None = None, check: bool = False, steps: int = STEPS,
    split: bool = False,
) -> tuple[dict[str, Any], Engine]:  # fmt: skip
    """Losses of `steps` steps, and the network after them. One process takes the chunks that two would."""
    if "WORLD_SIZE" not in os.environ:
        accumulation *= 2
    config = configure(model, accumulation, clip)
    data = training_set(model, targets)
    engine = start(config, MODELS[model](), data[:4] if check else None, split)
    plan = BatchPlan(len(data), BATCH, 0, engine.rank, engine.world_size, accumulation)
    losses: list[dict[str, float]] = []
    total: dict[str, Tensor] = {}
    engine.prepared.train()
    for micro in list(plan.micro_batches(0))[: steps * accumulation]:
        set_learning_rate(engine.optimizer, learning_rate(config.optim, micro.step, STEPS))
        with engine.accumulate():
            found = engine.losses(data[torch.tensor(micro.indices)])
            engine.backward(found["loss"])
            total = {name: total.get(name, 0) + value.detach() / accumulation for name, value in found.items()}
            engine.update()
        if micro.last:
            engine.average_buffers()
            losses.append({name: float(engine.mean(value)) for name, value in total.items()})
            total = {}
    return {"losses": losses, "network": engine.network_state(), "shapes": engine.shapes()}, engine


def parity() -> dict[str, Any]:
    results = {}
    for case in CASES:
        results[case], engine = train(*case)
    # No gradients, statistics of all processes: what evaluation does.
    engine.prepared.eval()
    predicted = engine.predict(training_set("skeleton", 1)[:4], frozenset({"logits", "input_gradient"}))
    results["predicted"] = predicted
    engine.prepared.train()
    results["again"] = float(engine.losses(training_set("skeleton", 1)[:4])["loss"].detach())
    return results


def checked() -> dict[str, Any]:
    """The self-check passes and leaves no trace."""
    return {accumulation: train("cnn", 2, accumulation, check=True)[0] for accumulation in (1, 2)}


def split() -> dict[tuple[str, int, int], Any]:
    """Two passes of the network in one step; some processes' batches have real samples, others none."""
    return {
        case: train(*case, check=True, split=True)[0]
        for case in CASES
        if case[0] in ("vit", "skeleton") and case[2] == 1
    }


def channels_last() -> dict[str, Any]:
    """Trained, saved and loaded."""
    folder = Path(sys.argv[1]) / "channels-last"
    MODELS["channels last"] = channels_last_cnn
    trained, engine = train("channels last", 1, 1)
    engine.on_main(lambda: folder.mkdir())
    engine.save(folder)
    engine.gather(None)
    engine.load(folder)
    return trained


def lengths() -> dict[tuple[str, int], Any]:
    """How long both gradients of a first step are, as every process has it."""
    results = {}
    for model, accumulation in (("cnn", 1), ("vit", 2), ("skeleton", 1)):
        chunks = accumulation if "WORLD_SIZE" in os.environ else 2 * accumulation
        engine = start(configure(model, chunks), MODELS[model]())
        engine.prepared.train()
        data = training_set(model, 2)
        plan = BatchPlan(len(data), BATCH, 0, engine.rank, engine.world_size, chunks)
        batch = [data[torch.tensor(micro.indices)] for micro in list(plan.micro_batches(0))[:chunks]]
        results[model, accumulation] = engine.gather(gradient_lengths(engine, batch, (0, "step", 0)))
    return results


def clipped() -> dict[str, Any]:
    return {1.0: train("cnn", 1, 2, clip=1.0)[0]}


def default_clipping() -> dict[str, Any]:
    """What training gives if DeepSpeed's own default clips."""
    from provscale.engine import zero

    settings = zero.deepspeed_settings

    def without_ours(*arguments: Any) -> dict[str, Any]:
        result = settings(*arguments)
        result["gradient_clipping"] = 1.0
        return result

    zero.deepspeed_settings = without_ours
    try:
        return {"clipped": train("cnn", 1, 1)[0]}
    finally:
        zero.deepspeed_settings = settings


def refusals() -> dict[str, str]:
    """Messages of what an engine cannot do."""
    messages = {}
    config = configure("cnn", 1)
    engine = start(config, small_cnn())
    try:
        engine.check_world_size(engine.world_size + 1, Path("step-1"))
    except UserError as error:
        messages["world size"] = str(error)
    network = small_cnn()
    try:
        engine.prepare(GuidedStep(network, 0.0), torch.optim.Adafactor(network.parameters()))
    except UserError as error:
        messages["optimizer"] = str(error)
    if engine.name != "ddp":
        config.train.reduction = "bf16"
        try:
            build_engine(config)
        except UserError as error:
            messages["reduction"] = str(error)
    return messages


def skipped() -> list[dict[str, Tensor]]:
    """The network after two steps of SGD, with two beside them that are left out for their NaN, and without."""
    networks = []
    for flags in ((1.0, 0.0, 1.0, 0.0), (0.0, 0.0)):
        engine = start(configure("cnn", 1), small_cnn())
        for flag in flags:
            engine.backward(engine.losses(training_set("cnn", 1)[:4])["loss"])
            for parameter in engine.step.parameters():
                parameter.grad.mul_(float("nan") if flag else 1.0)
            engine.update(skip=torch.tensor(flag))
        networks.append(engine.network_state())
    return networks


def reduced() -> dict[str, dict[str, Tensor]]:
    """The network before a step and after it, with gradients that travel in FP32 and in bf16; self-checked."""
    networks = {}
    for reduction in ("fp32", "bf16"):
        config = configure("vit", 1)
        config.train.reduction = reduction  # type: ignore[assignment]
        data = training_set("vit", 2)
        engine = start(config, small_vit(), check=data[:4])
        networks["before"] = engine.network_state()
        engine.backward(engine.losses(data[4 * engine.rank : 4 * engine.rank + 4])["loss"])
        engine.update()
        networks[reduction] = engine.network_state()
    return networks


def state() -> dict[str, Any]:
    """Saves an engine's state, to be loaded by another number of processes."""
    folder = Path(sys.argv[1]) / "state"
    result, engine = train("skeleton", 1, 1)
    engine.on_main(lambda: folder.mkdir())
    engine.save(folder)
    engine.accelerator.wait_for_everyone()
    return {"network": result["network"], "continued": update(engine)}


def other_weights() -> dict[str, Any]:
    """Another network's weights come and go between two steps."""
    result, engine = train("skeleton", 1, 1)
    engine.load_network({name: value + 1 for name, value in result["network"].items()})
    engine.prepared.eval()
    loaded = {
        "network": engine.network_state(),
        "predicted": engine.predict(training_set("skeleton", 1)[:4], frozenset({"logits"}))["logits"],
    }
    engine.prepared.train()
    engine.load_network(result["network"])
    return {"before": result["network"], "loaded": loaded, "continued": update(engine)}


def load_state() -> dict[str, Any]:
    engine = start(configure("skeleton", 1), skeleton())
    engine.load(Path(sys.argv[1]) / "state")
    return {"network": engine.network_state(), "continued": update(engine)}


def update(engine: Engine) -> dict[str, Tensor]:
    """The network after one more step on one batch, the same for all processes."""
    engine.backward(engine.losses(training_set("skeleton", 1)[:4])["loss"])
    engine.update()
    return engine.network_state()


def whole_run(*options: str) -> int:
    """One run of `RUN` through the entry point; returns its exit code."""
    from provscale.train import main

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accumulation = 2 if "WORLD_SIZE" in os.environ else 4
    return main([*RUN, f"--train.accumulation={accumulation}", f"--run.dir={Path(sys.argv[1]) / 'runs'}", *options])


def trainer() -> dict[str, Any]:
    """A whole run, and its second half again from the checkpoint in the middle."""
    middle = Path(sys.argv[1]) / "runs" / "whole" / "checkpoints" / "step-00000003"
    return {"codes": [whole_run("--run.name=whole"), whole_run("--run.name=half", f"--checkpoint.resume={middle}")]}


def exact() -> dict[str, Any]:
    """The whole run in float64; and again with first weights moved by float32's unit roundoff, to see what a rounding
    error becomes until the end."""
    NETWORKS.register("float64_resnet")(float64_resnet)
    model = ["--model.name=float64_resnet", "--train.self_check=false"]
    moved = f"--model.options={ {**SMOOTH, 'moved': UNIT_ROUNDOFF} }"
    return {"codes": [whole_run("--run.name=float64", *model), whole_run("--run.name=moved", *model, moved)]}


def float64_resnet(num_classes: int, moved: float = 0.0, **options: Any) -> nn.Module:
    """`test_resnet` with the same first weights in float64, each then moved by the share `moved` up or down."""
    network = timm.create_model("test_resnet", num_classes=num_classes, **options).double()
    network.conv1[0].register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1 + moved * (2 * torch.randint(2, parameter.shape, generator=generator) - 1)
    return network


def bytes_of(value: Any) -> int:
    """Bytes of all distinct tensors in nested containers, as far as this process stores them."""
    found: dict[int, int] = {}

    def visit(part: Any) -> None:
        if isinstance(part, DTensor):
            part = part.to_local()
        if isinstance(part, Tensor):
            if part.numel() > 1:  # not AdamW's step counters
                found[part.data_ptr()] = part.numel() * part.element_size()
        elif isinstance(part, dict):
            for entry in part.values():
                visit(entry)
        elif isinstance(part, list | tuple):
            for entry in part:
                visit(entry)

    visit(value)
    return sum(found.values())


def measure() -> dict[str, Any]:
    """What every process stores: parameters and AdamW's two moments between steps, gradients between micro-batches."""
    config = configure("skeleton", 2)
    config.optim.head_lr_multiplier = 1.0
    layers = [module for _ in range(8) for module in (nn.Linear(64, 64, bias=False), nn.Tanh())]
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 64, bias=False))
    total = sum(parameter.numel() for parameter in network.parameters())
    engine = start(config, network)
    sample = Sample.real(torch.randn(4, 1, 8, 8), torch.arange(4))
    held: list[dict[str, int]] = []
    for _ in range(2):
        engine.backward(engine.losses(sample)["loss"])
        parameters = list(engine.network.parameters())
        zero = getattr(engine.optimizer, "optimizer", None)
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        # DeepSpeed keeps reduced gradients in tables of its own.
        gradients += [getattr(zero, name, None) for name in ("all_grad_tensors", "averaged_gradients")]
        held.append({"gradients": bytes_of(gradients)})
        engine.update()
    if hasattr(engine.prepared, "reshard"):
        engine.prepared.reshard()
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    mine = {
        **held[0],
        "parameters": bytes_of([getattr(parameter, "ds_tensor", parameter) for parameter in parameters]),
        "optimizer": bytes_of(list(optimizer.state.values())),
    }
    return {"total": 4 * total, "ranks": engine.gather(mine)}


def dies(action: Any) -> None:
    """A training run in which one process does `action` at its third step."""
    from provscale import train as entry
    from provscale.trainer import Trainer

    step = Trainer.optimizer_step

    def planted(self: Trainer, *arguments: Any) -> None:
        if self.progress.step == 2:
            print(f"rank {self.engine.rank} trains", file=sys.stderr, flush=True)
            self.engine.accelerator.wait_for_everyone()
            if self.engine.rank == 1:
                action()
        step(self, *arguments)

    Trainer.optimizer_step = planted  # type: ignore[method-assign]
    sys.exit(entry.main([*RUN, f"--run.dir={sys.argv[1]}", "--run.name=dies"]))


def killed() -> None:
    dies(lambda: os.kill(os.getpid(), signal.SIGKILL))


def raises() -> None:
    def fail() -> None:
        raise RuntimeError("planted failure")

    dies(fail)


if __name__ == "__main__":
    for task in sys.argv[2:]:
        result = globals()[task]()
        if os.environ.get("RANK", "0") == "0":
            torch.save(result, Path(sys.argv[1]) / f"{task}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
