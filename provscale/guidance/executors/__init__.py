"""Executors: how the inside of a step runs."""
