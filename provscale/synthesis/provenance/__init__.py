"""What makes the provenance masks of edited images. A method is one function and one entry of `PROVENANCE`."""

from provscale.synthesis.provenance import difference, refined, segmented  # noqa: F401  (they register their methods)
from provscale.synthesis.provenance.base import PROVENANCE, ProvenanceOptions, dilated, make_mask, one_value
from provscale.synthesis.provenance.mask_files import mask_file, read_mask_file

__all__ = [
    "PROVENANCE",
    "ProvenanceOptions",
    "dilated",
    "make_mask",
    "mask_file",
    "one_value",
    "read_mask_file",
]
