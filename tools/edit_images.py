"""Edits a data set's training images with a diffusers pipeline, and writes the table that training reads.

    python -m tools.edit_images --pipeline MODEL --kind img2img --prompts "a photo of a {} bird on rocks" \\
        --data.name cub_classification --data.root CUB_200_2011 [--device cuda --precision fp16] [--attention]

Needs the extra `edit` (diffusers). MODEL is a folder of the user's, or a name on the hub; its weights must be
safetensors. Kinds: img2img (Stable Diffusion and others), inpaint (repaints what is 0 in the image's mask below
--masks, which becomes the provenance mask), instruct (InstructPix2Pix; prompts are instructions).

`{}` in a prompt stands for the class. The generator sees images stretched to --size; edits are stretched back to the
size of their source (bicubic) and lie in DATA.ROOT/edits/images/. What is drawn for an edit depends on --seed, its
image and its prompt alone. Stopped and started again, it goes on where it was; the table is written when all are there.

With --attention, the map of the class name's tokens (tools/attention_maps.py) is written for each edit as 8-bit gray,
brighter = more, and named in the table's column attention_file_name.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from provscale.command_line import parse
from provscale.data import DataSplits, build_splits
from provscale.data.decode import decode_plain, read_image
from provscale.data.images.manifest import write_table
from provscale.errors import UserError, reported
from provscale.files import write_atomically, written_aside
from provscale.randomness import numpy_generator
from provscale.tracking.terminal import console
from tools.alia_tree import plain
from tools.attention_maps import AttentionRecorder, word_positions
from tools.build_edit_manifest import relative

PIPELINES = {
    "img2img": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
    "instruct": "StableDiffusionInstructPix2PixPipeline",
}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SETTINGS = (
    "pipeline", "kind", "prompts", "strength", "guidance", "image_guidance", "steps", "size", "seed", "precision",
)  # fmt: skip
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Job:
    """One edit to make: of which training image, by which prompt (filled in), and where its files go."""

    position: int
    prompt_number: int
    prompt: str
    word: str
    image: Path
    attention: Path
    mask: Path


def load_pipeline(given: argparse.Namespace) -> Any:
    """The pipeline on its device. Raises UserError: no diffusers, or a pipeline that cannot be loaded."""
    try:
        import diffusers
    except ImportError:
        raise UserError("diffusers is not installed; pip install 'provscale[edit]'") from None
    try:
        pipeline = getattr(diffusers, PIPELINES[given.kind]).from_pretrained(
            given.pipeline, torch_dtype=PRECISIONS[given.precision], use_safetensors=True
        )
    except Exception as error:  # diffusers raises many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--pipeline: {given.pipeline} cannot be loaded as {given.kind} ({reason[0][:160]}); give a "
                        "folder or a hub name of a diffusers pipeline with safetensors") from None  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(given.device)


def jobs(splits: DataSplits, out: Path, given: argparse.Namespace) -> list[Job]:
    """All edits, image by image. Raises UserError for a prompt with other braces than {}."""
    made = []
    count = len(splits.train) if given.limit is None else min(given.limit, len(splits.train))
    for position in range(count):
        word = plain(splits.class_names[splits.train.label(position)])
        for number, prompt in enumerate(given.prompts):
            try:
                filled = prompt.format(word)
            except (IndexError, KeyError, ValueError):
                raise UserError(f"--prompts: '{prompt}' has braces that are not {{}}, the class; remove them") from None
            name = f"{position:06d}-{number}.png"
            made.append(Job(position, number, filled, word, *(out / kind / name for kind in
                                                              ("images", "attention", "masks"))))  # fmt: skip
    return made


def kept_mask(folder: Path, source: Path, size: tuple[int, int]) -> Image.Image:
    """What of a source must stay, 8-bit gray 0 or 255, from FOLDER/<class folder>/<image>.png or FOLDER/<image>.png.

    Raises:
        UserError: no such mask, no mask, or one of another size.
    """
    places = (folder / source.parent.name / f"{source.stem}.png", folder / f"{source.stem}.png")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"--masks: {places[0]} does not exist, the mask of {source}; it is 255 where the object is")
    values = read_image(found, decode_plain)
    first = values if values.ndim == 2 else values[..., 0]
    if first.shape[::-1] != size:
        raise UserError(
            f"{found}: the mask is {first.shape[1]} x {first.shape[0]} pixels, its image {size[0]} x {size[1]}"
        )
    return Image.fromarray((first > 127).astype(np.uint8) * 255)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        image.save(aside, format="PNG")


def edit_batch(pipeline: Any, splits: DataSplits, batch: Sequence[Job], given: argparse.Namespace) -> None:
    """Makes and writes the edits of one batch; an edit's image comes last, as the sign that it is done."""
    items = [splits.train[job.position] for job in batch]
    sources = [Image.fromarray(item.inputs.permute(1, 2, 0).contiguous().numpy()) for item in items]
    side = (given.size, given.size)
    seeds = [int(numpy_generator(given.seed, "edit", job.position, job.prompt_number).integers(2**62)) for job in batch]
    words: dict[str, Any] = {
        "prompt": [job.prompt for job in batch], "image": [source.resize(side, BICUBIC) for source in sources],
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "strength": given.strength, "guidance_scale": given.guidance, "image_guidance_scale": given.image_guidance,
        "num_inference_steps": given.steps, "height": given.size, "width": given.size,
    }  # fmt: skip
    if given.kind == "inpaint":
        masks = [kept_mask(given.masks, Path(item.name), source.size)
                 for item, source in zip(items, sources, strict=True)]  # fmt: skip
        words["mask_image"] = [Image.fromarray(255 - np.asarray(mask.resize(side, Image.Resampling.NEAREST)))
                               for mask in masks]  # fmt: skip
        for job, mask in zip(batch, masks, strict=True):
            save(mask, job.mask)
    accepted = inspect.signature(pipeline.__call__).parameters
    words = {name: value for name, value in words.items() if name in accepted}
    if given.attention:
        with AttentionRecorder(pipeline.unet, len(batch)) as recorder:
            made = pipeline(**words).images
        for job, source, tokens in zip(batch, sources, recorder.maps(), strict=True):
            chosen = word_positions(pipeline.tokenizer, job.prompt, job.word) or [0]
            values = tokens[[position for position in chosen if position < len(tokens)]].mean(dim=0).numpy()
            levels = (values - values.min()) * (255 / max(float(np.ptp(values)), 1e-12))
            save(Image.fromarray(levels.round().astype(np.uint8)).resize(source.size, BICUBIC), job.attention)
    else:
        made = pipeline(**words).images
    for job, source, image in zip(batch, sources, made, strict=True):
        save(image.resize(source.size, BICUBIC), job.image)


def batches(todo: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    return (todo[start : start + size] for start in range(0, len(todo), size))


def same_settings(out: Path, given: argparse.Namespace) -> None:
    """Writes what the edits are made with, or compares it with what those that are there were made with.

    Raises:
        UserError: another setting.
    """
    names = (
        "pipeline",
        "kind",
        "prompts",
        "strength",
        "guidance",
        "image_guidance",
        "steps",
        "size",
        "seed",
        "precision",
    )
    mine = {name: getattr(given, name) for name in names}
    file = out / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text())
        changed = [name for name in SETTINGS if before.get(name) != mine[name]]
        if changed:
            raise UserError(f"{file}: the edits in {out} were made with {changed[0]} {before.get(changed[0])}, not "
                            f"{mine[changed[0]]}; give another --out, or remove this folder")  # fmt: skip
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(mine, indent=1) + "\n")


def check(given: argparse.Namespace) -> None:
    """Raises UserError for options that are out of range or exclude each other."""
    for name in ("steps", "batch", "size"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name}: is {getattr(given, name)}, must be at least 1")
    if not 0 < given.strength <= 1:
        raise UserError(f"--strength: is {given.strength}, must be above 0 and at most 1")
    if given.size % 8:
        raise UserError(f"--size: is {given.size}, must be a multiple of 8, by which autoencoders shrink images")
    if (given.kind == "inpaint") != (given.masks is not None):
        raise UserError("--masks: is for --kind inpaint, which needs it: the folder of masks, 255 = what stays")


def run(given: argparse.Namespace, words: list[str]) -> None:
    """Makes the edits that are missing, then writes metadata.csv.

    Raises:
        UserError: wrong input.
    """
    check(given)
    config = parse(words)
    if config.data.root is None and given.out is None:
        raise UserError("--data.root: is not set; give --data.name and --data.root of the images to edit, or --out")
    splits = build_splits(replace(config.data, validation_share=0), config.seed)
    out = given.out or Path(config.data.root or "") / "edits"
    wanted = jobs(splits, out, given)
    pipeline = load_pipeline(given)
    if given.attention and not (hasattr(pipeline, "unet") and hasattr(pipeline.unet, "set_attn_processor")):
        raise UserError(
            f"--attention: {type(pipeline).__name__} has no U-Net whose attention can be recorded; leave it out"
        )
    same_settings(out, given)
    todo = [job for job in wanted if not job.image.is_file() or (given.attention and not job.attention.is_file())]
    parts = list(batches(todo, given.batch))
    for batch in track(parts, "edits", console=console, disable=not console.is_terminal):
        edit_batch(pipeline, splits, batch, given)
    rows = []
    for job in wanted:
        item = splits.train[job.position]
        row = {"file_name": relative(job.image, out), "source_file_name": relative(Path(item.name), out),
               "label": item.target, "prompt": job.prompt}  # fmt: skip
        row |= {"mask_file_name": relative(job.mask, out)} if given.kind == "inpaint" else {}
        rows.append(row | ({"attention_file_name": relative(job.attention, out)} if given.attention else {}))
    write_table(out / "metadata.csv", rows)
    print(f"{out / 'metadata.csv'}: {len(rows)} edits, {len(todo)} of them made now")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--pipeline", required=True, metavar="MODEL", help="folder or hub name of a diffusers pipeline")
    parser.add_argument("--kind", choices=list(PIPELINES), default="img2img")
    parser.add_argument("--prompts", nargs="+", required=True, help="one edit of each image by each; {} = its class")
    parser.add_argument("--out", type=Path, help="folder of metadata.csv (default: DATA.ROOT/edits)")
    parser.add_argument("--masks", type=Path, help="inpaint: masks of what stays, by class folder and image name")
    parser.add_argument("--strength", type=float, default=0.6, help="img2img, inpaint: share of noise (ALIA: 0.6)")
    parser.add_argument("--guidance", type=float, default=7.5, help="scale of the prompt (ALIA: 7.5)")
    parser.add_argument("--image-guidance", type=float, default=1.2, help="instruct: scale of the image (ALIA: 1.2)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--size", type=int, default=512, help="side that the generator sees, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="edits made at once")
    parser.add_argument("--limit", type=int, help="edit the first images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--attention", action="store_true", help="write cross-attention maps of the class name")
    given, words = parser.parse_known_args(arguments)
    return reported(lambda: run(given, words))


if __name__ == "__main__":
    sys.exit(main())
