"""What a run is called beside others."""

from __future__ import annotations

from typing import Any

import pytest

from provscale.config import Config
from provscale.run.arms import alpha_text, arm_names, differences


def config(**changes: Any) -> dict[str, Any]:
    """The default config, changed; `guidance__alpha=1` stands for guidance.alpha."""
    content = Config().to_dict()
    for key, value in changes.items():
        *sections, last = key.split("__")
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    return content


EDITED: dict[str, Any] = {"synthesis__name": "edited"}
GUIDED = {**EDITED, "guidance__alpha": 0.05}
CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "one": ([GUIDED], ["guided"]),
    "arms": ([EDITED, GUIDED], ["baseline", "guided"]),
    "controls": (
        [GUIDED, {**GUIDED, "guidance__mask": "random"}, {**GUIDED, "guidance__mask": "none"}],
        ["guided", "control with random masks", "control without masks"],
    ),
    "alphas": (
        [EDITED, GUIDED, {**GUIDED, "guidance__alpha": 0.1}],
        ["baseline", "guided, alpha 0.05", "guided, alpha 0.1"],
    ),
    "a baseline of its own": (
        [{"synthesis__name": "none"}, EDITED, GUIDED],
        ["baseline, synthesis none", "baseline, synthesis edited", "guided, synthesis edited"],
    ),
    "cheaper guidance": (
        [EDITED, GUIDED, {**GUIDED, "guidance__every": 4}],
        ["baseline", "guided, every 1", "guided, every 4"],
    ),
    "seeds": ([{**GUIDED, "seed": 0}, {**GUIDED, "seed": 1}], ["guided, seed 0", "guided, seed 1"]),
    "words that end alike": (
        [{"data__name": "a", "optim__clip_norm": None}, {"data__name": "b", "optim__clip_norm": 1.0}],
        ["baseline, data a, clip norm null", "baseline, data b, clip norm 1"],
    ),
    "whole keys": (
        [{"evaluation__best": "x", "optim__lr": 0.1, "data__options": {"lr": 1}},
         {"evaluation__best": "y", "optim__lr": 0.2, "data__options": {"lr": 2}}],
        ["baseline, optim.lr 0.1, best x, data.options.lr 1", "baseline, optim.lr 0.2, best y, data.options.lr 2"],
    ),
    "nothing": ([GUIDED, {**GUIDED, "run__name": "b", "tracking__images": 0}, EDITED],
                ["guided 1", "guided 2", "baseline"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_only_what_differs_is_in_a_name(case: str) -> None:
    changes, expected = CASES[case]
    assert arm_names([config(**change) for change in changes]) == expected


def test_a_key_that_an_older_config_lacks_has_its_default() -> None:
    older, newer = config(), config(optim__lr=0.5)
    del older["guidance"]["every"], older["tracking"], older["optim"]["lr"]
    assert differences([older, newer]) == {"optim.lr": [Config().optim.lr, 0.5]}
    assert arm_names([older, newer]) == [f"baseline, lr {Config().optim.lr:g}", "baseline, lr 0.5"]


def test_alpha_says_what_it_is_a_number_of() -> None:
    assert alpha_text({"alpha": 0.2}) == alpha_text({"alpha": 0.2, "alpha_rule": "fixed"}) == "0.2"
    assert alpha_text({"alpha": 0.2, "alpha_rule": "gradient_ratio"}) == "0.2 (gradient ratio)"
