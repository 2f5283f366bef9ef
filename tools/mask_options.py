"""Options of the tools that make provenance masks: those of `synthesis.options` of the synthesis `edited`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from provscale.synthesis.provenance import PROVENANCE, ProvenanceOptions


def add_mask_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds --provenance (one method, or `several`) and what the methods take."""
    methods = list(PROVENANCE)
    if several:
        parser.add_argument("--provenance", nargs="+", choices=methods, default=["otsu", "refined"], help="methods")
    else:
        parser.add_argument("--provenance", choices=methods, default="otsu", help="method")
    parser.add_argument("--space", choices=("rgb", "lab"), default="rgb", help="of otsu: colour space")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of otsu: standard deviation in pixels")
    parser.add_argument("--weights", default=None, metavar="ONNX", help="of segmented: the network")
    parser.add_argument("--weights-side", type=int, default=None, metavar="PIXELS", help="of segmented: input side")
    parser.add_argument(
        "--weights-normalisation", choices=("half", "imagenet"), default="half", help="of segmented: input range"
    )
    parser.add_argument(
        "--source-size", choices=("refuse", "resize"), default="refuse", help="a source of another size than its edit"
    )


def options_from(parsed: argparse.Namespace, method: str) -> dict[str, Any]:
    """Keywords of `ProvenanceOptions` for one method: without what the other methods take."""
    of_method = {"otsu": ("space", "smoothing"), "segmented": ("weights", "weights_side", "weights_normalisation")}
    others = {name for owner, names in of_method.items() if owner != method for name in names}
    given = {entry.name: getattr(parsed, entry.name) for entry in fields(ProvenanceOptions) if entry.name not in others}
    return {**given, "provenance": method}
