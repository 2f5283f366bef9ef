"""Where numbers go: metrics.jsonl, Weights & Biases, the terminal."""
