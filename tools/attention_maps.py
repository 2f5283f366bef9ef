"""Where a generator looked for a word of the prompt: cross-attention maps of a diffusers U-Net, as it edits.

Every cross-attention layer gets a processor that computes its attention matrix once more beside the layer's own
computation, whose result stays as it is. A map is the mean over heads, layers and steps, each scaled to one size.

Shapes: B images, T tokens, S x S the size of the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
CONDITIONED = {1: 0, 2: 1, 3: 0}
"""Which part of a pipeline's batch is conditioned on the prompt, by the number of parts that guidance makes of it:
without guidance the only one, of two the second, of InstructPix2Pix's three the first."""


class AttentionRecorder:
    """Sums up attention while a pipeline runs. Processors are in place inside the `with` block.

    Args:
        unet: a diffusers `UNet2DConditionModel`.
        batch: B, how many images the pipeline makes at once.
    """

    def __init__(self, unet: Any, batch: int) -> None:
        self.unet, self.batch = unet, batch
        self.sum: Tensor | None = None
        self.count = 0

    def __enter__(self) -> AttentionRecorder:
        self.before = dict(self.unet.attn_processors)
        # attn1 attends to the image itself, attn2 to the prompt.
        recording = {
            name: Recording(processor, self.add) if name.endswith("attn2.processor") else processor
            for name, processor in self.before.items()
        }
        self.unet.set_attn_processor(recording)
        return self

    def __exit__(self, *error: object) -> None:
        self.unet.set_attn_processor(self.before)

    def add(self, attention: Tensor) -> None:
        """Adds one layer's attention of one step, [parts * B, pixels, T]; layers of another shape than 2 ** k times
        the smallest square are none of an image and are left out."""
        rows, pixels, tokens = attention.shape
        side = round(pixels**0.5)
        parts = rows // self.batch
        if side * side != pixels or rows % self.batch or parts not in CONDITIONED:
            return
        mine = attention.view(parts, self.batch, pixels, tokens)[CONDITIONED[parts]].float()
        square = mine.transpose(1, 2).reshape(self.batch, tokens, side, side)
        scaled = F.interpolate(square, (SIDE, SIDE), mode="bilinear", align_corners=False).cpu()
        self.sum = scaled if self.sum is None else self.sum + scaled
        self.count += 1

    def maps(self) -> Tensor:
        """float32 [B, T, 32, 32]; over tokens they sum to 1. Needs at least one recorded layer."""
        assert self.sum is not None
        return self.sum / self.count


class Recording:
    """An attention processor that also hands on the attention, mean over heads [parts * B, pixels, T]."""

    def __init__(self, processor: Any, add: Callable[[Tensor], None]) -> None:
        self.processor, self.add = processor, add

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if encoder_hidden_states is not None and hidden_states.ndim == 3:
            context = encoder_hidden_states
            if attn.norm_cross:
                context = attn.norm_encoder_hidden_states(context)
            with torch.no_grad():
                query, key = (attn.head_to_batch_dim(layer) for layer in (attn.to_q(hidden_states), attn.to_k(context)))
                scores = attn.get_attention_scores(query, key)
            self.add(scores.view(hidden_states.shape[0], attn.heads, *scores.shape[1:]).mean(dim=1))
        return self.processor(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def word_positions(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Positions of a word's tokens in the tokenised prompt; none where the word is not in it."""
    tokens: Sequence[int] = tokenizer(prompt).input_ids
    wanted: Sequence[int] = tokenizer(word, add_special_tokens=False).input_ids
    starts = [n for n in range(len(tokens) - len(wanted) + 1) if list(tokens[n : n + len(wanted)]) == list(wanted)]
    return [start + offset for start in starts for offset in range(len(wanted))] if wanted else []
