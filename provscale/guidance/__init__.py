"""Provenance guidance. Eq. 1 is in `loss`, the whole step in `objective`, what an engine wraps in `step`."""
