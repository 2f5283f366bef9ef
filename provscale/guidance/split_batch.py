"""A batch in two parts: synthetic samples are differentiated twice, real ones run an ordinary step.

A real sample contributes nothing to L_PG, so with n of B samples synthetic

    L_total(batch) = n/B * L_total(synthetic part) + (B - n)/B * L_cls(real part)

and so are its gradients, wherever a sample's logits do not depend on the other samples of its batch.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from provscale.errors import UserError
from provscale.sample import Sample


def parts_of(sample: Sample) -> list[tuple[Sample, float]]:
    """The synthetic and the real samples of a batch, each with its share of the batch's samples.

    One part, the batch itself, when all samples are of one kind.
    """
    size = len(sample)
    kinds = sample.is_synthetic.cpu()  # the shapes depend on it, so the host waits for the device here
    synthetic, real = kinds.nonzero().squeeze(1), (~kinds).nonzero().squeeze(1)
    count = len(synthetic)
    if count in (0, size):
        return [(sample, 1.0)]
    return [(sample[synthetic], count / size), (replace(sample[real], guided=False), (size - count) / size)]


def refuse_batch_statistics(network: nn.Module) -> None:
    """Raises UserError for a layer whose output or running statistics depend on which samples share its batch.

    That is BatchNorm (SyncBatchNorm, timm's kinds) that normalises by its batch: in train mode, or in any mode
    without running statistics; InstanceNorm that collects running statistics; and in train mode a module that names,
    as `statistic_of_batch`, a loss which is no mean over samples.
    """
    for name, layer in network.named_modules():
        loss = getattr(layer, "statistic_of_batch", None)
        if layer.training and loss is not None:
            raise UserError(
                f"guidance.split_batch: is true, but {loss} of {type(layer).__name__} is a statistic of the whole "
                "batch; set it to false"
            )
        if isinstance(layer, _BatchNorm):
            bound = layer.training or layer.running_mean is None
        else:
            bound = isinstance(layer, _InstanceNorm) and layer.training and layer.track_running_stats
        if bound:
            raise UserError(
                f"guidance.split_batch: is true, but layer '{name}' is a {type(layer).__name__} that takes statistics "
                "of the whole batch; set it to false, or use a network with GroupNorm or LayerNorm"
            )
