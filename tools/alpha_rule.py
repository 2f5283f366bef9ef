"""`guidance.alpha_rule: gradient_ratio` beside fixed alphas, over networks and tasks: the tables of docs/alpha.md.

python -m tools.alpha_rule --doc docs/alpha.md    trains what is not trained yet, and writes them

What is trained is in configs/alpha_tasks.yaml: plans, tasks and networks. All figures are of the validation split after
the last epoch: the best fixed alpha is chosen on them, so the rule, whose ratio is given, has no part in that choice.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import UserError, reported
from provscale.files import markdown_table, update_document
from provscale.tracking.metrics_file import read_metrics
from tools.demo_runs import LABELS, ROOT, common_words, last_validation, runs_parser, train_all, values_text

TASKS = ROOT / "configs" / "alpha_tasks.yaml"
RULE = "rule"
Values = dict[str, list[float]]
"""By arm (an alpha as text, or `RULE`): the task's metric, seed by seed."""


def arms_of(alphas: list[float], ratio: float) -> dict[str, list[str]]:
    """Command lines of training without guidance, at each fixed alpha, and by the rule."""
    arms = {f"{alpha:g}": ["--guidance.alpha", str(alpha)] for alpha in [0.0, *alphas]}
    return arms | {RULE: ["--guidance.alpha_rule", "gradient_ratio", "--guidance.alpha", str(ratio)]}


def weight_in(run: Path) -> float:
    """The weight of L_PG that the rule gave in the last row of kind `gradients`."""
    return float([row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "gradients"][-1]["alpha"])


def outcome(values: Values) -> tuple[str, str]:
    """The best fixed alpha, and what share of its gain over alpha 0 the rule reaches; "-" where it gains nothing."""
    means = {arm: statistics.mean(found) for arm, found in values.items()}
    rule, without = means.pop(RULE), means.pop("0")
    best = max(means, key=lambda arm: means[arm])
    gain = means[best] - without
    return (best, f"{100 * (rule - without) / gain:.0f} %") if gain > 0 else (best, "-")


def run(arguments: argparse.Namespace) -> None:
    content: dict[str, Any] = yaml.safe_load(TASKS.read_text())
    for title in [arguments.plan] if arguments.plan else content["plans"]:
        if title not in content["plans"]:
            raise UserError(f"--plan: is '{title}', must be one of: {', '.join(content['plans'])} ({TASKS})")
        compare(title, content["plans"][title], content["tasks"], arguments)


def compare(title: str, plan: dict[str, Any], tasks: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One plan's table, which grows with every network that has been trained."""
    arms = arms_of(plan["alphas"], plan["ratio"])
    labels = [f"alpha {arm}" for arm in arms if arm != RULE] + [f"{RULE}, {plan['ratio']:g}"]
    rows = [["task, metric", "network", *labels, "its weight", "best fixed alpha", "share of its gain"]]
    for name, task in tasks.items():
        for network, words in task["networks"].items():
            each = [(arm, [*common_words(task), *words, *more]) for arm, more in arms.items()]
            runs = train_all(f"alpha-{name}-{network}", each, plan["seeds"], arguments.dir, arguments.jobs)
            values = {arm: [last_validation(path, task["metric"]) for path in paths] for arm, paths in runs.items()}
            weights = ", ".join(f"{weight_in(path):.2g}" for path in runs[RULE])
            figures = map(values_text, values.values())
            rows.append([f"{name}, {LABELS[task['metric']]}", network, *figures, weights, *outcome(values)])
            print(f"\n{markdown_table(rows)}\n", flush=True)
            if arguments.doc is not None:
                update_document(arguments.doc, markdown_table(rows), f"measured {title}")


def main() -> int:
    parser = runs_parser(__doc__)
    parser.add_argument("--plan", help="one of the file's plans (default: all)")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured table is replaced")
    return reported(lambda: run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
