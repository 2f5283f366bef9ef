"""Engines: one process, DDP, DeepSpeed ZeRO, FSDP2."""

from provscale.engine.base import Engine, check_supported
from provscale.engine.select import build_engine

__all__ = ["Engine", "build_engine", "check_supported"]
