"""What a run is called beside others: its arm, and what else of its config differs from theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from provscale.config import Config
from provscale.run.frozen_config import changes_training, flatten

BASELINE = "baseline"
CONTROLS = {
    "provenance": "guided",
    "random": "control with random masks",
    "independent": "control with independent masks",
    "complement": "control with complementary masks",
    "none": "control without masks",
}


def differences(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys that change training and are not the same in all configs, with the value of each config.

    A key that an older config lacks has its default there.
    """
    defaults = flatten(Config().to_dict())
    flat = [{**defaults, **flatten(config)} for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if changes_training(key) and key != "run.name")
    values = {key: [config.get(key) for config in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def arm_names(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A short name of each run, no two alike: `guided`, `baseline` or a control, and what differs, or a number."""
    kinds = [kind_of(config) for config in configs]
    differing = differences(configs)
    names = []
    for number, kind in enumerate(kinds):
        parts = [kind]
        for key, values in differing.items():
            alike = [value for value, other in zip(values, kinds, strict=True) if other == kind]
            if key == "guidance.mask" or (kind == BASELINE and key.startswith("guidance.")):
                continue  # the kind says it, or it does nothing
            if key == "guidance.alpha" and all(value == alike[0] for value in alike):
                continue
            parts.append(f"{short(key, differing)} {value_text(values[number])}")
        names.append(", ".join(parts))
    return [
        f"{name} {names[: number + 1].count(name)}" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]


def kind_of(config: dict[str, Any]) -> str:
    """`guided`, `baseline`, or which control."""
    guidance = config["guidance"]
    return CONTROLS[guidance.get("mask", "provenance")] if guidance["alpha"] > 0 else BASELINE


def alpha_text(guidance: dict[str, Any]) -> str:
    """A config's alpha, with the rule that it is a number for, unless it is the weight itself."""
    rule = guidance.get("alpha_rule", "fixed")
    return f"{guidance['alpha']:g}" + (f" ({rule.replace('_', ' ')})" if rule != "fixed" else "")


def short(key: str, among: dict[str, Any]) -> str:
    """The last word of a key, or its section's where that is `name`; the whole key where others end alike."""
    section, _, last = key.rpartition(".")
    if last == "name":
        return section
    alike = [other for other in among if other.rpartition(".")[2] == last]
    return key if len(alike) > 1 else last.replace("_", " ")


def value_text(value: Any) -> str:
    """As in YAML: true, null; numbers without trailing zeros."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
