"""The paper's experiments, and its tables from runs."""
