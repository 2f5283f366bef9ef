"""Diffusion pipelines of diffusers' own classes, tiny and with random weights, in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "photo", "of", "albatross", "auklet", "blackbird", "on", "rocks", "snow"]


def tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with an alphabet and a few whole words."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    merges: list[str] = []
    known = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merged = parts[0] + parts[1]
            if f"{parts[0]} {parts[1]}" not in merges:
                merges.append(f"{parts[0]} {parts[1]}")
                known.append(merged)
            parts = [merged, *parts[2:]]
    known = list(dict.fromkeys([*known, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(known)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=16)


def make_pipeline(folder: Path, kind: str = "img2img") -> Path:
    """A pipeline of 8-pixel latents' cells, saved in `folder`; kinds as tools/edit_images.py has them."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels={"img2img": 4, "inpaint": 9, "instruct": 8}[kind], out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    ).eval()  # fmt: skip
    name = {"img2img": "StableDiffusionImg2ImgPipeline", "inpaint": "StableDiffusionInpaintPipeline",
            "instruct": "StableDiffusionInstructPix2PixPipeline"}[kind]  # fmt: skip
    pipeline = getattr(diffusers, name)(
        vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(str(folder / kind))
    return folder / kind
