"""What each of two processes stores: stage 1 shards optimizer state, 2 gradients too, 3 and FSDP2 parameters too."""

from __future__ import annotations

import pytest
from engine_runs import result

SHARDED = {
    "ddp": set(),
    "zero1": {"optimizer"},
    "zero2": {"optimizer", "gradients"},
    "zero3": {"optimizer", "gradients", "parameters"},
    "fsdp2": {"optimizer", "gradients", "parameters"},
}


@pytest.mark.parametrize("engine", SHARDED)
def test_every_process_stores_its_share(engine: str) -> None:
    """AdamW keeps two moments of every parameter; sharded state is half of the whole on each of two processes."""
    measured = result(engine, "measure")
    whole = {"parameters": measured["total"], "gradients": measured["total"], "optimizer": 2 * measured["total"]}
    assert len(measured["ranks"]) == 2
    for rank in measured["ranks"]:
        for kind, stored in rank.items():
            share = 0.5 if kind in SHARDED[engine] else 1.0
            # ZeRO-2 accumulates whole parameters: one of nine lies across the border.
            assert stored / whole[kind] == pytest.approx(share, abs=0.06), (engine, kind, stored)
