"""The network's weights of any checkpoint as one safetensors file, which timm and plain PyTorch load.

python tools/consolidate.py runs/x/checkpoints/step-00000120 --out weights.safetensors

Needs one process, whatever engine and number of processes wrote the checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from provscale.errors import UserError, reported
from provscale.files import written_aside
from provscale.run.checkpoint_folder import damage

PREFIX = "network."


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """The network's state by its own names.

    Raises:
        UserError: no folder, or an incomplete or damaged checkpoint.
    """
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: is no folder; name a checkpoint, e.g. runs/x/checkpoints/step-00000120")
    if problem := damage(checkpoint):
        raise UserError(f"{checkpoint}: cannot be used: {problem}; name another checkpoint")
    whole = checkpoint / "model.safetensors"
    if whole.exists():
        return load_file(whole)
    # FSDP2's checkpoints have every process's shards alone, with the step module's names.
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.pt"
        dcp_to_torch_save(checkpoint, joined)
        content = torch.load(joined, map_location="cpu", weights_only=True)
    return {name.removeprefix(PREFIX): value for name, value in content["model"].items() if name.startswith(PREFIX)}


def consolidate(checkpoint: Path, out: Path) -> None:
    state = {name: value.contiguous() for name, value in weights_of(checkpoint).items()}
    with written_aside(out) as aside:
        save_file(state, aside)
    print(f"{out}: {len(state)} tensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a complete checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    return reported(lambda: consolidate(arguments.checkpoint, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
