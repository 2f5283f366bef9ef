"""Makes edits/metadata.csv, which training reads, of the edited images that ALIA's code has made.

    python -m tools.build_edit_manifest TREE [TREE ...] --data.name cub_classification --data.root CUB_200_2011 \\
        [--scores scores.csv | --kept kept.npy] [--number 1000] [--other-size resize]

A source is found by the index in the edit's name, which counts the data set's training images in their order, or the
lines of --order. It is verified by class and by similarity (tools/source_match.py). Pairs that are not certain are
listed in unverified.csv with the reason, and are not in the manifest: nothing is guessed. ALIA shuffles Waterbirds,
so there the index says nothing without --order.

Of each source --per-source edits are drawn, then --number of all, class by class as many as the extra real images,
both by --seed. Diffusion pipelines change the size of an image; with --other-size resize a copy of such an edit in its
source's size is written (bicubic, without regard to proportions, since that is how pipelines stretch it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from provscale.command_line import parse
from provscale.data import DataSplits, build_splits
from provscale.data.decode import decode_rgb, read_image
from provscale.data.images.manifest import write_table
from provscale.data.splits import matched
from provscale.errors import UserError, reported
from provscale.files import written_aside
from provscale.randomness import numpy_generator
from tools.alia_tree import AliaEdit, kept_by_index, kept_by_scores, read_trees
from tools.source_match import Blocks, Match, blocks, in_threads, match


def training_order(splits: DataSplits, names: Sequence[str], root: Path, file: Path | None) -> list[int]:
    """The position in `splits.train` that each index of ALIA's training set stands for.

    Raises:
        UserError: a line of the file names no training image.
    """
    if file is None:
        return list(range(len(names)))
    if not file.is_file():
        raise UserError(f"--order: {file} does not exist; it lists ALIA's training images, one per line")
    positions = {Path(name).resolve(): position for position, name in enumerate(names)}
    order = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        path = (root / line.strip()).resolve()
        if path not in positions:
            raise UserError(f"{file}, line {number}: {line.strip()} is no training image below {root}; repair it")
        order.append(positions[path])
    return order


def drawn(
    edits: Sequence[AliaEdit], sources: Sequence[int], splits: DataSplits, given: argparse.Namespace
) -> list[int]:
    """Positions of the edits to use: some of each source, then of each class; a function of the seed.

    Raises:
        UserError: fewer edits than asked for.
    """
    of_source: dict[int, list[int]] = defaultdict(list)
    for position, source in enumerate(sources):
        of_source[source].append(position)
    chosen: list[int] = []
    for source, own in sorted(of_source.items()):
        places = numpy_generator(given.seed, "edits of a source", source).permutation(len(own)).tolist()
        chosen += [own[place] for place in places[: given.per_source or None]]
    if given.number is None:
        return sorted(chosen)
    if given.number > len(chosen):
        raise UserError(f"--number: is {given.number}, but there are only {len(chosen)} verified edits, "
                        f"{given.per_source or 'all'} of each source; lower it")  # fmt: skip
    order = [chosen[place] for place in numpy_generator(given.seed, "edits").permutation(len(chosen)).tolist()]
    if splits.extra_counts is not None:
        labels = [edit.label for edit in edits]
        order = matched(order, labels, splits.extra_counts, given.number, splits.class_names, "--number")
    return sorted(order[: given.number])


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, from the file's head. Raises UserError for what is no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); replace or remove this file") from None


def resized(edit: Path, size: tuple[int, int], to: Path) -> None:
    pixels = functional.resize(
        read_image(edit, decode_rgb), [size[1], size[0]], InterpolationMode.BICUBIC, antialias=True
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(to) as aside:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(aside, format="PNG")


def relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def filtered(edits: list[AliaEdit], given: argparse.Namespace) -> list[AliaEdit]:
    """What ALIA's filter keeps, as far as its verdicts or scores are given."""
    if given.kept is not None:
        edits = kept_by_index(edits, given.kept)
        print(f"{len(edits)} kept by {given.kept}")
    if given.scores is not None:
        edits, gone = kept_by_scores(edits, given.scores)
        print(f"{len(edits)} kept by {given.scores}; " + ", ".join(f"{n} {rule}" for rule, n in gone.items()))
    return edits


def build(given: argparse.Namespace, words: list[str]) -> None:
    """Checks everything, then writes copies, unverified.csv and, last, metadata.csv.

    Raises:
        UserError: wrong input; nothing is written then.
    """
    config = parse(words)
    if config.data.root is None:
        raise UserError("--data.root: is not set; give --data.name and --data.root of the images that were edited")
    out = given.out or Path(config.data.root) / "edits"
    if (out / "metadata.csv").exists():
        raise UserError(f"{out / 'metadata.csv'}: exists already; remove it, or give another --out")
    if given.per_source < 0 or given.workers < 1 or (given.number is not None and given.number < 1):
        raise UserError("--per-source must be at least 0 (all), --workers and --number at least 1")
    # Nothing held out: the index counts all training images.
    splits = build_splits(replace(config.data, validation_share=0), config.seed)
    edits = read_trees(given.trees, splits.class_names)
    print(f"{len(edits)} edits")
    edits = filtered(edits, given)
    names: list[str] = [""] * len(splits.train)
    labels = np.array([splits.train.label(position) for position in range(len(names))])

    def open_source(position: int) -> Blocks:
        item = splits.train[position]
        names[position] = item.name
        return blocks(item.inputs)

    known = np.stack(in_threads(open_source, len(names), "training images", given.workers))
    order = training_order(splits, names, Path(config.data.root), given.order)

    def compared(number: int) -> Match | str:
        """How the edit fits to its source among the images of its class, or why it has none."""
        edit = edits[number]
        look = blocks(read_image(edit.path, decode_rgb))
        if edit.source >= len(order):
            return f"there are only {len(order)} training images"
        source = order[edit.source]
        if labels[source] != edit.label:
            return "the source has another class"
        rivals = np.flatnonzero(labels == edit.label)
        found = match(look, int(np.flatnonzero(rivals == source)[0]), known[rivals])
        return replace(found, other=int(rivals[found.other]))

    certain: list[tuple[AliaEdit, int, Match]] = []
    doubtful: list[dict[str, Any]] = []
    for edit, found in zip(edits, in_threads(compared, len(edits), "edits", given.workers), strict=True):
        row: dict[str, Any] = {"file_name": relative(edit.path, out), "index": edit.source}
        if isinstance(found, str):
            doubtful.append({**row, "reason": found})
        elif reason := found.doubt(given.least, given.margin):
            source = order[edit.source]
            files = {"source": relative(Path(names[source]), out), "other": relative(Path(names[found.other]), out)}
            values = {"similarity": f"{found.similarity:.4f}", "other_similarity": f"{found.other_similarity:.4f}"}
            doubtful.append({**row, "reason": reason, **files, **values})
        else:
            certain.append((edit, order[edit.source], found))
    print(f"{len(certain)} with a verified source, {len(doubtful)} not certain")
    if not certain:
        hint = f"; the first: {doubtful[0]['file_name']}: {doubtful[0]['reason']}" if doubtful else ""
        raise UserError(f"{given.trees[0]}: no edit has a certain source{hint}; give --order, or lower --least")
    chosen = drawn([edit for edit, _, _ in certain], [source for _, source, _ in certain], splits, given)
    write(out, [certain[position] for position in chosen], names, doubtful, given.other_size)


def write(
    out: Path, chosen: Sequence[tuple[AliaEdit, int, Match]], names: Sequence[str], doubtful: list[dict[str, Any]],
    other_size: str,
) -> None:  # fmt: skip
    sizes = [(size_of(edit.path), size_of(Path(names[source]))) for edit, source, _ in chosen]
    other = [number for number, (own, wanted) in enumerate(sizes) if own != wanted]
    if other and other_size == "refuse":
        own, wanted = sizes[other[0]]
        raise UserError(
            f"{chosen[other[0]][0].path}: is {own[0]} x {own[1]} pixels, its source {wanted[0]} x {wanted[1]}, and "
            f"so are {len(other)} of {len(chosen)} edits; --other-size resize writes copies in their sources' sizes"
        )
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (edit, source, found) in enumerate(chosen):
        file = edit.path
        if number in set(other):
            file = out / "resized" / f"{number:06d}.png"
            resized(edit.path, sizes[number][1], file)
        rows.append(
            {
                "file_name": relative(file, out), "source_file_name": relative(Path(names[source]), out),
                "label": edit.label, "prompt": edit.prompt, "strength": edit.strength, "guidance": edit.guidance,
                "similarity": f"{found.similarity:.4f}",
            }
        )  # fmt: skip
    if doubtful:
        write_table(out / "unverified.csv", doubtful)
    write_table(out / "metadata.csv", rows)
    print(f"{out / 'metadata.csv'}: {len(rows)} edits, {len(other)} of them resized"
          + (f"; {out / 'unverified.csv'}: {len(doubtful)}" if doubtful else ""))  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("trees", type=Path, nargs="+", metavar="TREE", help="ALIA's folders of edits, in its order")
    parser.add_argument("--out", type=Path, help="folder of metadata.csv (default: DATA.ROOT/edits)")
    parser.add_argument("--order", type=Path, help="text file: the image, below data.root, that each index stands for")
    parser.add_argument("--kept", type=Path, help="ALIA's filtered_idxs/kept.npy")
    parser.add_argument("--scores", type=Path, help="CSV: file_name,semantic,prediction,confidence,threshold")
    parser.add_argument("--per-source", type=int, default=1, help="edits of each source; 0 = all (default: 1)")
    parser.add_argument("--number", type=int, help="edits in all (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--least", type=float, default=0.5, help="least similarity to the source (default: 0.5)")
    parser.add_argument("--margin", type=float, default=0.05, help="by which it is above any other (default: 0.05)")
    parser.add_argument("--other-size", choices=("refuse", "resize"), default="refuse", help="edits of another size")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode images (default: 4)")
    given, words = parser.parse_known_args(arguments)
    return reported(lambda: build(given, words))


if __name__ == "__main__":
    sys.exit(main())
