"""Chooses the engine from what `accelerate launch` says in the environment."""

from __future__ import annotations

from provscale.config import Config
from provscale.engine.base import Engine


def build_engine(config: Config) -> Engine:
    return Engine(config)
