"""Method `otsu`: where the edited image still equals its source (paper, supplement section 6)."""

from __future__ import annotations

import cv2
import numpy as np

from provscale.synthesis.provenance.base import PROVENANCE, Pixels, ProvenanceOptions, below_otsu, lab_distance


@PROVENANCE.register("otsu")
def otsu(source: Pixels, edited: Pixels, options: ProvenanceOptions) -> Pixels:
    """Per-pixel difference, binarised by Otsu's threshold; equal images give all ones.

    In RGB the difference of a pixel is the largest absolute difference over its channels, because an edit that changes
    only the hue of a pixel is an edit; a mean over channels would shrink it. `options.smoothing` above 0 takes away
    lone pixels that agree by chance.
    """
    if options.space == "lab":
        distance = lab_distance(source.astype(np.float32), edited.astype(np.float32))
        if options.smoothing > 0:
            distance = np.asarray(cv2.GaussianBlur(distance, (0, 0), options.smoothing), dtype=np.float32)
        return below_otsu(distance)
    difference = cv2.absdiff(source, edited).max(axis=2)
    if options.smoothing > 0:
        difference = cv2.GaussianBlur(difference, (0, 0), options.smoothing)
    # THRESH_BINARY_INV: 1 where the difference is at most the threshold.
    _, unedited = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    return np.asarray(unedited, dtype=np.uint8)
