"""The model card of an exported run: README.md with the header that a hub reads."""

from __future__ import annotations

import json

from provscale.run.arms import alpha_text
from provscale.run.finished_run import FinishedRun

CARD = """---
{header}
---

# {name}

{model}, trained by provscale with synthesis `{synthesis}` and guidance: {guidance}. The method is that of "Learning
from Synthetic Data via Provenance-Based Input Gradient Guidance" (CVPR 2026): L = L_cls + alpha L_PG.

| | |
|---|---|
{facts}

## Metrics on the test split

{metrics}

## Loading it

{loading}

## How it was made

```
{command}
```

The whole config is config.yaml. Versions: {versions}.

## Licences

`license: {licence}` in the header is the publisher's statement. The weights come from the data set
`{data}`{pretrained}: look at their terms before you publish or use the weights. provscale itself is Apache-2.0.
"""
TIMM = """```python
import timm

network = timm.create_model("local-dir:{name}", pretrained=True)  # or "hf-hub:USER/NAME", once it is published
```

"""


def model_card(run: FinishedRun, at: str, name: str, licence: str, timm_reads: bool) -> str:
    """The card's text.

    Args:
        at: which weights: those of the `best` or of the `last` epoch.
        name: of the exported folder.
        licence: identifier for the header.
        timm_reads: whether timm loads the folder.
    """
    config, summary = run.config, run.summary
    model, data, guidance = (config[key] for key in ("model", "data", "guidance"))
    best, last = run.results("test")
    tested = best if at == "best" else last
    epoch = run.best_epoch if at == "best" else run.last_epoch
    rows = [f"| {metric} | {tested[metric]:.2f} |" for metric in run.metric_names() if metric in tested]
    header = ["library_name: timm", "pipeline_tag: image-classification"] if timm_reads else ["library_name: provscale"]
    load = f"--model.name {model['name']} --model.pretrained {name}"
    if model["options"]:
        load += f" --model.options '{json.dumps(model['options'])}'"
    facts = {
        "data": f"`{data['name']}`, options `{json.dumps(data['options'])}`",
        "classes": ", ".join(summary.get("classes") or ["not recorded"]),
        "weights": f"epoch {epoch} of {config['train']['epochs']}, the {at}; the best epoch is chosen by "
        f"`{run.best_metric}` on {run.selected_on}",
        "seed": config["seed"],
        "training": f"{summary['wall_seconds']:.0f} s, {summary['world_size']} processes, engine {summary['engine']}",
    }
    if summary.get("mean"):
        mean, deviation = ([round(value, 4) for value in summary[key]] for key in ("mean", "std"))
        side = data["image_size"]
        facts["input"] = f"{side} x {side} pixels in [0, 1], mean {mean}, standard deviation {deviation}"
    environment = dict(summary["environment"])
    command = environment.pop("command", "")
    return CARD.format(
        header="\n".join([*header, f"license: {licence}", "tags:", "- provscale"]),
        name=name,
        model=model["name"],
        synthesis=config["synthesis"]["name"],
        guidance=f"alpha {alpha_text(guidance)}, mask {guidance['mask']}" if guidance["alpha"] else "none (alpha 0)",
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        metrics="\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "None, with these weights.",
        loading=(TIMM.format(name=name) if timm_reads else "")
        + f"In provscale the folder is a value of `model.pretrained`: `{load}`.",
        command=command,
        versions=", ".join(f"{key} {value}" for key, value in environment.items() if value),
        licence=licence,
        data=data["name"],
        pretrained=f" and from pretrained weights (`{model['pretrained']}`)" if model["pretrained"] != "none" else "",
    )
