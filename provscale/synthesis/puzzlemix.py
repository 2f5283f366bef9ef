"""PuzzleMix (Kim et al., ICML 2020), with its mask kept.

Which block of the mixed image shows A, B or both is a graph cut; then each image's salient blocks move to where it is
shown. n x n blocks, n in {2, 4, 8, 16}; z in {0, 1/2, 1} per block, the share of A. With s_A, s_B the saliencies
(sum 1 over blocks), D_XY the mean difference of X and Y across the border of two neighbouring blocks p, q, and
lambda ~ Beta(b, b), z minimises

    sum_p  z_p s_B,p + (1 - z_p) s_A,p  -  eta / n^2  log Binomial(2 z_p; 2, lambda)
    + beta / 16n  sum_pq  (z_p - z_q)^2
    + beta gamma / 16n  sum_pq  z_p z_q D_AA + z_p (1 - z_q) D_AB + (1 - z_p) z_q D_BA + (1 - z_p) (1 - z_q) D_BB

(Eq. 3 and the authors' public code). The transport of an image (their Algorithm 1) sends its block i to position j at
the cost  xi |i - j|^2 / (n - 1)^2 - s_i [j is shown];  of two blocks at one position the cheaper stays. Hence M = z is
the source at *output* positions:  x~ = M A' + (1 - M) B',  and lambda is recomputed as the mean of M.

B samples, C channels, H x W pixels, blocks of H/n x W/n pixels.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Sample
from provscale.synthesis.base import SYNTHESES, Mixing, mixed
from provscale.synthesis.graph_cut import SOLVERS

Solver = Literal["exact", "swap"]
BLOCKS = (2, 4, 8, 16)


def block_saliency(saliency: Tensor, blocks: int) -> Tensor:
    """[B, 1, H, W] -> [B, n, n], sum 1 in each sample; evenly spread where there is no saliency at all."""
    sums = F.adaptive_avg_pool2d(saliency.float(), blocks).squeeze(1)
    total = sums.sum(dim=(1, 2), keepdim=True)
    return torch.where(total > 0, sums / total.clamp(min=torch.finfo(sums.dtype).tiny), 1 / blocks**2)


def border_differences(first: Tensor, second: Tensor, blocks: int, near: int) -> tuple[Tensor, Tensor]:
    """Mean |first - second| across each border: `first` on its left (upper) side, `second` on its right (lower).

    Args:
        first, second: [B, C, H, W].
        near: pixels on either side, and along the border, that are averaged before they are compared; its greatest
            divisor of a block's side is taken.

    Returns:
        [B, n, n - 1] between horizontal, and [B, n - 1, n] between vertical neighbours.
    """

    def across(a: Tensor, b: Tensor) -> Tensor:
        """Borders between columns: [B, n, n - 1]."""
        height, width = a.shape[2] // blocks, a.shape[3] // blocks
        cells = a.unflatten(3, (blocks, width)), b.unflatten(3, (blocks, width))
        step, cell = math.gcd(near, width), math.gcd(near, height)
        difference = (cells[0][..., :-1, width - step :] - cells[1][..., 1:, :step]).mean(dim=4)
        difference = difference.unflatten(2, (-1, cell)).mean(dim=3).abs().mean(dim=1)
        return difference.unflatten(1, (blocks, -1)).mean(dim=2)

    return across(first, second), across(first.transpose(2, 3), second.transpose(2, 3)).transpose(1, 2)


def transported(images: Tensor, shown: Tensor, saliency: Tensor, xi: float) -> Tensor:
    """Each image's blocks after masked transport; only positions that are shown mean something.

    A position that is shown never stays empty: its own block claims it at first, at this block's lowest cost.

    Args:
        images: [B, C, H, W].
        shown: [B, n, n], above 0 where the image is shown.
        saliency: [B, n, n].
    """
    blocks = shown.shape[1]
    size = blocks**2
    places = torch.cartesian_prod(*(torch.arange(blocks, device=images.device),) * 2).float()
    distance = torch.cdist(places, places).square() / (blocks - 1) ** 2
    cost = xi * distance - saliency.reshape(-1, size, 1) * (shown.reshape(-1, 1, size) > 0)
    block = torch.arange(size, device=cost.device)
    for _ in range(blocks):
        wanted = cost.argmin(dim=2, keepdim=True)
        claims = torch.full_like(cost, torch.inf).scatter(2, wanted, cost.gather(2, wanted))
        best, source = claims.min(dim=1)
        lost = claims.isfinite() & (block[:, None] != source[:, None])
        cost = cost.masked_fill(lost, torch.inf)
    source = torch.where(best.isfinite(), source, block)
    height, width = images.shape[2] // blocks, images.shape[3] // blocks
    tiles = images.unflatten(3, (blocks, width)).unflatten(2, (blocks, height))
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = tiles.gather(1, source[:, :, None, None, None].expand_as(tiles)).unflatten(1, (blocks, blocks))
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


@SYNTHESES.register("puzzlemix")
class PuzzleMix(Mixing):
    """Mixes by saliency, which the caller provides as `sample.annotations["saliency"]` [B, 1, H, W], 0 or more.

    `needs_saliency` asks for it: the trainer puts the network's output `saliency` there (the length of the gradient of
    each sample's cross-entropy, over channels) before it mixes, so a synthesis stays a function of samples and a key,
    and no network reaches it. It costs a forward and a backward pass a batch.

    The cut itself runs on the CPU, so this synthesis waits for the device, once each way in a batch.

    Args:
        beta: parameter b of Beta(b, b), from which lambda is drawn for each sample.
        smoothness: `beta` of the formula above; 1.2 in the authors' code, as all defaults that follow.
        data_smoothness: gamma. Differences are those of both images scaled to [0, 1] by their common range, since a
            synthesis does not know the mean and standard deviation that pixels were normalised by.
        prior: eta.
        near: pixels of a border that are averaged before they are compared.
        transport: False leaves blocks where they are.
        xi: cost of transport.
        solver: `exact` (a minimum cut, SciPy) or `swap` (alpha-beta swaps by gco-wrapper, the authors' solver, which
            may miss the minimum of three labels; `pip install 'provscale[puzzlemix]'`).

    Raises:
        UserError: a value out of range; when mixing, inputs that are no images or do not divide into blocks, or no
            saliency.
    """

    needs_saliency = True

    def __init__(
        self,
        beta: float = 1.0,
        smoothness: float = 1.2,
        data_smoothness: float = 0.5,
        prior: float = 0.2,
        near: int = 4,
        transport: bool = True,
        xi: float = 0.8,
        solver: Solver = "exact",
    ) -> None:
        if not 0 < beta < float("inf"):
            raise UserError(f"synthesis.options.beta: is {beta}, must be above 0 and finite")
        # A data term of 1 or more could make neighbours repel each other, which is no minimum cut any more.
        if not (smoothness >= 0 and 0 <= data_smoothness < 1 and prior >= 0 and near >= 1 and xi >= 0):
            raise UserError(
                f"synthesis.options: smoothness {smoothness}, prior {prior} and xi {xi} must be 0 or more, "
                f"data_smoothness {data_smoothness} in [0, 1), near {near} at least 1"
            )
        if solver not in get_args(Solver):
            raise UserError(f"synthesis.options.solver: is '{solver}', must be one of: {', '.join(get_args(Solver))}")
        self.beta, self.smoothness, self.data_smoothness, self.prior = beta, smoothness, data_smoothness, prior
        self.near, self.transport, self.xi = near, transport, xi
        self.cut = SOLVERS[solver]()

    def mix(self, sample: Sample, partners: Sample, generators: list[np.random.Generator]) -> Sample:
        inputs = sample.inputs
        self.check(sample)
        draws = [
            (int(generator.choice(BLOCKS)), float(generator.beta(self.beta, self.beta))) for generator in generators
        ]
        images, mask = torch.empty_like(inputs), torch.empty_like(inputs[:, :1], dtype=torch.float32)
        for blocks in sorted({count for count, _ in draws}):
            rows = torch.tensor([row for row, (count, _) in enumerate(draws) if count == blocks])
            weights = torch.tensor([draws[row][1] for row in rows.tolist()])
            part = self.mix_blocks(sample[rows], partners[rows], blocks, weights)
            places = rows.to(inputs.device, non_blocking=True)
            images[places], mask[places] = part
        return mixed(sample, partners, images, mask, mask.mean(dim=(1, 2, 3)))

    def check(self, sample: Sample) -> None:
        shape, most = list(sample.inputs.shape), BLOCKS[-1]
        if len(shape) != 4 or shape[2] % most or shape[3] % most:
            raise UserError(
                f"synthesis.name: puzzlemix needs images [B, C, H, W] whose sides are multiples of {most}, this data "
                f"set has inputs of shape {shape}; set data.image_size to a multiple of {most}"
            )
        if "saliency" not in sample.annotations:
            raise UserError(
                "synthesis.name: puzzlemix needs annotations['saliency'] [B, 1, H, W] of both samples; compute it with "
                "the network's output 'saliency' (provscale/predictions.py), as the trainer does"
            )

    def mix_blocks(self, sample: Sample, partners: Sample, blocks: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        """x~ [b, C, H, W] and M [b, 1, H, W] of samples that are cut into `blocks` x `blocks`.

        Args:
            weights: lambda [b] on the CPU.
        """
        saliencies = [block_saliency(part.annotations["saliency"], blocks) for part in (sample, partners)]
        unary, right, down = self.energy(sample, partners, saliencies, weights)
        shown = self.cut(unary, right, down).to(sample.inputs.device, non_blocking=True)
        sources = [sample.inputs, partners.inputs]
        if self.transport:
            sources = [
                transported(images, where, saliency, self.xi)
                for images, where, saliency in zip(sources, (shown, 1 - shown), saliencies, strict=True)
            ]
        height, width = (side // blocks for side in sample.inputs.shape[2:])
        mask = shown.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)[:, None]
        share = mask.to(sample.inputs.dtype)
        return share * sources[0] + (1 - share) * sources[1], mask

    def energy(
        self, sample: Sample, partners: Sample, saliencies: list[Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Costs on the CPU, float64: of z = 0, 1/2, 1 for each block [b, n, n, 3], and of (z_p - z_q)^2 for horizontal
        [b, n, n - 1] and vertical [b, n - 1, n] neighbours.

        The data term is the same energy in another form: with w = (D_AB + D_BA - D_AA - D_BB) / 2 it is
        w (z_p - z_q)^2 plus, up to a constant, (D_AA + D_AB) / 2 for z_p, (D_BA + D_BB) / 2 for 1 - z_p, and likewise
        for q, for the values 0 and 1; between them it is taken as linear, as in the authors' code.
        """
        of_a, of_b = saliencies
        blocks = of_a.shape[1]
        scale = self.smoothness / (16 * blocks)
        pair = [sample.inputs.float(), partners.inputs.float()]
        both = torch.stack(pair, dim=1)
        low, high = both.amin(dim=(1, 2, 3, 4), keepdim=True)[:, 0], both.amax(dim=(1, 2, 3, 4), keepdim=True)[:, 0]
        a, b = ((images - low) / (high - low).clamp(min=torch.finfo(both.dtype).tiny) for images in pair)
        keep, give = of_b.clone(), of_a.clone()  # costs of z = 1 and of z = 0
        neighbours = []
        first, second = (np.s_[:, :, :-1], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, 1:])
        differences = [border_differences(x, y, blocks, self.near) for x, y in ((a, a), (a, b), (b, a), (b, b))]
        for axis, (aa, ab, ba, bb) in enumerate(zip(*differences, strict=True)):
            factor = scale * self.data_smoothness / 2
            keep[first[axis]] += factor * (aa + ab)
            give[first[axis]] += factor * (ba + bb)
            keep[second[axis]] += factor * (aa + ba)
            give[second[axis]] += factor * (ab + bb)
            neighbours.append(scale + factor * (ab + ba - aa - bb))
        keep, give, *neighbours = (tensor.double().cpu() for tensor in (keep, give, *neighbours))
        prior = torch.stack([(1 - weights) ** 2, 2 * weights * (1 - weights), weights**2], dim=1).double()
        prior = -self.prior / blocks**2 * torch.log(prior + 1e-8)
        unary = torch.stack([give, (give + keep) / 2, keep], dim=3) + prior[:, None, None]
        return unary, neighbours[0], neighbours[1]
