"""A run's folder on disk: checkpoints, logs, pictures, report."""
