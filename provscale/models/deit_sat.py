"""`deit_small_sat`: DeiT-S with a localisation token, whose attention says where the object is.

"Spatial-Aware Token for Weakly Supervised Object Localization" (SAT; Wu et al., ICCV 2023). A token `loc` goes with
the class token and the patches through DeiT's blocks. In each of the last three, with q_h, k_h, v_h of head h

    m_j   = sigmoid( mean_h  q_h[loc] . k_h[j] / sqrt(d) )            foreground probability of token j
    o_h[i] = sum_j  softmax_j( q_h[i] . k_h[j] / sqrt(d) )  m_j  v_h[j]     not normalised again

The classifier is a 3 x 3 convolution (384 -> K) on the normalised patch tokens and average pooling; the score map is
the three blocks' mean of m over the patches, the same whatever the class. Two losses join the cross-entropy, each with
weight 1 (M = that map, M' = M smoothed by the fixed 3 x 3 kernel below, zeros around it):

    loss_area = | mean over batch and patches of M  -  0.25 |
    loss_norm =   mean over batch and patches of M' (1 - M')

B samples, K classes, N = 1 + h w + 1 tokens (class, patches, loc), h x w = H/16 x W/16 patches, D channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.models.build import MODELS


def foreground_attention(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """timm's `attention` with its weights multiplied by m, without normalising them again.

    softmax(..) m V is softmax(..) (m V): masked values are what ordinary attention takes, fused kernels and second
    derivatives included. Attention dropout is not applied (SAT has none).

    Args:
        attention: a `timm.layers.Attention`.
        tokens: [B, N, D]; the localisation token is the last one.

    Returns:
        [B, N, D], and m [B, N] in (0, 1).
    """
    batch, length, channels = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, length, 3, attention.num_heads, attention.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhe,bhne->bhn", query[:, :, -1] * attention.scale, key)
    foreground = scores.mean(dim=1).sigmoid()
    attended = F.scaled_dot_product_attention(query, key, value * foreground[:, None, :, None])
    return attention.proj(attended.transpose(1, 2).reshape(batch, length, channels)), foreground


def foreground_block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A timm `Block` with `foreground_attention` in place of its own: tokens [B, N, D] -> the same, and m [B, N]."""
    attended, foreground = foreground_attention(block.attn, block.norm1(tokens))
    tokens = tokens + block.drop_path1(attended)
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens))), foreground


def smoothing_weights() -> tuple[float, float]:
    """Middle and side of SAT's kernel, which is (side, middle, side) along rows times the same along columns, sum 1.

    They are square roots of a normal distribution's mass in three equal intervals that span 49/6 standard deviations
    to both sides: 0.897 and 0.051, so 0.805 in the middle of the 3 x 3 kernel and 0.003 at its corners.
    """

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf(edge / math.sqrt(2)))

    outer, inner = 49 / 6, 49 / 18
    middle, side = math.sqrt(below(inner) - below(-inner)), math.sqrt(below(outer) - below(inner))
    return middle / (middle + 2 * side), side / (middle + 2 * side)


def smoothed(maps: Tensor) -> Tensor:
    """M' of M [B, h, w]: the kernel of `smoothing_weights`, zeros around."""
    middle, side = smoothing_weights()
    for pad, axis in (((0, 0, 1, 1), 1), ((1, 1), 2)):
        padded, size = F.pad(maps, pad), maps.shape[axis]
        around = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
        maps = middle * maps + side * around
    return maps


@MODELS.register("deit_small_sat")
class DeiTSmallSAT(VisionTransformer):
    """Weights are named as in timm's and the original DeiT-S, whose linear head has no place here.

    In training it returns its logits and its losses, otherwise logits alone. `loss_area` is a statistic of a process's
    share of the batch, as BatchNorm's are: with several processes the mean over each share is compared with `area`.

    Args:
        num_classes: K.
        drop_path_rate: highest rate of stochastic depth, that of the last block.
        area: share of an image that is foreground on average, which `loss_area` asks for.
        masked_blocks: blocks at the end whose attention is masked.
        img_size, embed_dim, depth, num_heads: as timm's; the defaults are DeiT-S.

    Raises:
        UserError: an area or a number of masked blocks out of range.
    """

    hub_name = "deit_small_patch16_224.fb_in1k"
    new_layers = ("head.", "loc_token", "loc_embed")
    statistic_of_batch = "loss_area"
    cls_token: Any
    pos_embed: Any
    head: Any

    def __init__(
        self,
        num_classes: int,
        drop_path_rate: float = 0.1,
        area: float = 0.25,
        masked_blocks: int = 3,
        img_size: int = 224,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
    ) -> None:
        if not 0 < area < 1:
            raise UserError(f"model.options.area: is {area}, must be between 0 and 1")
        if not 1 <= masked_blocks <= depth:
            raise UserError(f"model.options.masked_blocks: is {masked_blocks}, must be 1 to {depth}, the depth")
        super().__init__(
            img_size=img_size,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
        )
        self.area, self.masked_blocks = area, masked_blocks
        self.loc_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))
        self.loc_embed = nn.Parameter(trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))
        self.head = nn.Conv2d(embed_dim, num_classes, kernel_size=3, padding=1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draws the head's weights anew, as PyTorch does (and SAT)."""
        self.num_classes = num_classes
        self.head = nn.Conv2d(self.embed_dim, num_classes, kernel_size=3, padding=1)

    def logits_and_foreground(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and M [B, h, w] in (0, 1), of `inputs` [B, 3, H, W]."""
        patches = self.patch_embed(inputs)
        batch = patches.shape[0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), patches], dim=1) + self.pos_embed
        tokens = torch.cat([tokens, (self.loc_token + self.loc_embed).expand(batch, -1, -1)], dim=1)
        masked = len(self.blocks) - self.masked_blocks
        for block in self.blocks[:masked]:
            tokens = block(tokens)
        found = []
        for block in self.blocks[masked:]:
            tokens, foreground = foreground_block(block, tokens)
            found.append(foreground[:, 1:-1])
        grid = self.patch_embed.grid_size
        features = self.norm(tokens)[:, 1:-1].transpose(1, 2).unflatten(2, grid)
        return self.head(features).mean(dim=(2, 3)), torch.stack(found).mean(dim=0).unflatten(1, grid)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Logits [B, K]; in training also `loss_area` and `loss_norm`, scalars, each with its weight of 1."""
        logits, foreground = self.logits_and_foreground(inputs)
        if not self.training:
            return logits
        return logits, self.foreground_losses(foreground)

    def foreground_losses(self, foreground: Tensor) -> dict[str, Tensor]:
        """`loss_area` and `loss_norm`, at least FP32, of M [B, h, w]."""
        foreground = foreground.to(torch.promote_types(foreground.dtype, torch.float32))
        smooth = smoothed(foreground)
        return {"loss_area": (foreground.mean() - self.area).abs(), "loss_norm": (smooth * (1 - smooth)).mean()}

    def logits_and_score_map(self, inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and M [B, h, w], which does not depend on `classes`."""
        return self.logits_and_foreground(inputs)
