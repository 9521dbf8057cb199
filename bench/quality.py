"""What the MovieLens recipes reach, over seeds: the table of docs/quality.md.

python -m bench.quality                     all of them, 3 seeds each, in one process without Ray
python -m bench.quality --only bpr_movielens --seeds 1
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import rtrain
from bench.asked import parser
from recipes import (
    bpr_movielens,
    dlrm_movielens,
    hstu_movielens,
    lightgcn_movielens,
    sasrec_movielens,
    text_tower_movielens,
    two_tower_features_movielens,
    two_tower_movielens,
)
from rtrain import GAUC, Handoff, Run


@dataclass(frozen=True)
class Shown:
    """A recipe, the metrics of its test split that are shown, and what others report of the same protocol."""

    run: Callable[[], Run]
    metrics: tuple[str, ...]
    published: dict[str, float]
    protocol: str


BY_CHANCE = "80/10/10 by chance of each user's ratings, all unseen items ranked, best epoch by validation MRR@10"
LAST_ONE = (
    "each user's last rating tests, the one before validates, all unseen items ranked, best by validation NDCG@10"
)
BY_TIME = "the last tenth of all ratings tests, the tenth before validates; liked is a rating of 4 or more"
MOMENT = GAUC(by=("user_id", "timestamp"))
"""How many pairs of one user's ratings of one second, which no rating between could have told apart, stand right."""


def demo() -> Run:
    """The demo's recipe, asked one metric more."""
    made = dlrm_movielens.run()
    return replace(made, metrics=(*made.metrics, MOMENT))


RECIPES = {
    # RecBole 1.2's own quick start: BPR, 64 dims, best epoch by validation MRR@10.
    "bpr_movielens": Shown(
        bpr_movielens.run,
        ("ndcg@10", "recall@10", "mrr@10"),
        {"ndcg@10": 0.2768, "recall@10": 0.2368},
        BY_CHANCE,
    ),
    "lightgcn_movielens": Shown(lightgcn_movielens.run, ("ndcg@10", "recall@10", "mrr@10"), {}, BY_CHANCE),
    "two_tower_movielens": Shown(two_tower_movielens.run, ("ndcg@10", "recall@10", "mrr@10"), {}, BY_CHANCE),
    "two_tower_features_movielens": Shown(
        two_tower_features_movielens.run, ("ndcg@10", "recall@10", "mrr@10"), {}, BY_CHANCE
    ),
    "text_tower_movielens": Shown(text_tower_movielens.run, ("ndcg@10", "recall@10", "mrr@10"), {}, BY_CHANCE),
    "sasrec_movielens": Shown(sasrec_movielens.run, ("ndcg@10", "hit_rate@10", "mrr@10"), {}, LAST_ONE),
    "hstu_movielens": Shown(hstu_movielens.run, ("ndcg@10", "hit_rate@10", "mrr@10"), {}, LAST_ONE),
    "dlrm_movielens": Shown(demo, ("auc", "log_loss", "ndcg@10", MOMENT.name), {}, BY_TIME),
}


def measure(shown: Shown, seed: int, storage: str) -> Mapping[str, Any]:
    """`result.json` of one seed's training."""
    run = replace(shown.run(), seed=seed, storage=storage, name=f"seed-{seed}", handoff=Handoff(export=False))
    alone = rtrain.override(run, {"cluster.workers": 1, "parallel.dense": "ddp", "tracking.to": ()})
    result = rtrain.train(alone, launcher="inline", quiet=True)
    assert result is not None, "without Ray a job is waited for"
    return result.values


def table(name: str, shown: Shown, found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; `found`: the result of each seed."""
    lines = [f"### {name}", "", shown.protocol[0].upper() + shown.protocol[1:] + f"; {len(found)} seeds.", ""]
    lines += [f"| test metric | mean | spread | {found[0]['baseline_name']} | published |", "|---|---|---|---|---|"]
    for metric in shown.metrics:
        values, simple = [one["test"][metric] for one in found], found[0]["baseline"][metric]
        published = f"{shown.published[metric]:.4f}" if metric in shown.published else "-"
        spread = f"{min(values):.4f} - {max(values):.4f}"
        lines.append(f"| {metric} | {statistics.mean(values):.4f} | {spread} | {simple:.4f} | {published} |")
    return "\n".join(lines)


def main() -> int:
    """Print a table a recipe."""
    asking = parser("bench.quality", __doc__)
    asking.add_argument("--seeds", type=int, default=3, help="trainings of each recipe (default 3)")
    asking.add_argument("--only", choices=sorted(RECIPES), help="one recipe; left out: all")
    asked = asking.parse_args()
    for name, shown in RECIPES.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="rtrain-quality-") as storage:
                found = [measure(shown, seed, storage) for seed in range(asked.seeds)]
            print(table(name, shown, found), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
