"""What is here and what is missing, before anything is trained: `python -m provscale.doctor`."""
