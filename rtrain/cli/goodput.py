"""`rtrain goodput`: how much of a run's time failures leave, by simulation and by closed form."""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from rtrain.cli.verb import Argument, Verb, answer
from rtrain.errors import ConfigError

if TYPE_CHECKING:
    from rtrain.goodput import Study

EXAMPLE = """\
example: 512 nodes, each failing every 20,000 hours (so one of them every 39 hours), which a spare replaces at once

    rtrain goodput --nodes 512 --mtbf-hours 20000 --checkpoint-s 30 --write-s 120 --restart-s 180 --spares 4 \\
        --picture goodput.png

Then ask what else could be: --spares 0 (the run waits for the repair), --elastic (it goes on without the node), or
--preemptions-per-day 0.01 --notice-s 120 --price 1.2 for spot nodes. `python RECIPE chaos` measures what a restart
takes (recovered); docs/goodput.md says how to read the answer."""


def _goodput(options: argparse.Namespace) -> int:
    from rtrain.goodput import Scenario, study
    from rtrain.report.pictures import check_picture, write_picture

    path = options.picture
    if path:
        check_picture(path)
    given = vars(options) | {"price_per_device_hour": options.price}
    scenario = Scenario(**{f.name: given[f.name] for f in fields(Scenario) if given[f.name] is not None})
    found = study(scenario, every_s=_every_s(options.checkpoint_every_s), seeds=options.seeds)
    told = found.to_json()
    if path:
        from rtrain.report.goodput import draw_study

        write_picture(draw_study(found), path)
        told["picture"] = path
    answer(options, told, _spell(found))
    return 0


def _every_s(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--checkpoint-every-s: {text!r} is no number of seconds. Give one, or auto for the best"
        ) from None


def _spell(found: "Study") -> str:
    from rtrain.report.goodput import spell_s

    run, chosen = found.scenario, found.chosen
    kind = "elastic" if run.elastic else "fixed"
    spot = f", spot: {run.preemptions_per_day:g} preemptions per node and day" if run.preemptions_per_day else ""
    lines = [
        f"{run.nodes:,} nodes x {run.devices_per_node} devices, {kind}, {run.spares} spares, {run.days:g} days{spot}; "
        f"{found.seeds} seeds",
        f"an interruption every {spell_s(found.interruption_s)}, {found.interruptions:.1f} in a run",
        "",
        f"goodput {chosen.mean:.2%} (10 to 90 % of seeds: {chosen.low:.2%} to {chosen.high:.2%}; closed form "
        f"{chosen.closed_form:.2%}), a checkpoint every {spell_s(chosen.every_s)}",
        "of the time: " + ", ".join(f"{name} {share:.2%}" for name, share in found.shares.items()),
    ]
    if found.best and found.as_good_s:
        low, high = found.as_good_s
        lines.append(
            f"best interval {spell_s(found.best.every_s)} ({found.best.mean:.2%}); within 0.1 points: {spell_s(low)} "
            f"to {spell_s(high)}; Young {spell_s(found.young_s)}, Daly {spell_s(found.daly_s)}"
        )
        lines += ["", f"{'checkpoint every':>16} {'mean':>8} {'10 %':>8} {'median':>8} {'90 %':>8} {'closed form':>12}"]
        for p in found.points[::2]:
            lines.append(
                f"{spell_s(p.every_s):>16} {p.mean:>8.2%} {p.low:>8.2%} {p.median:>8.2%} {p.high:>8.2%} "
                f"{p.closed_form:>12.2%}"
            )
    if found.cost is not None:
        each = found.cost_per_useful_device_hour
        per_hour = "no useful hour" if each is None else f"{each:.3f} per useful device-hour"
        lines += ["", f"cost {found.cost:,.0f}, {per_hour} at {run.price_per_device_hour:g} per device-hour"]
    return "\n".join(lines)


GOODPUT = Verb(
    "goodput",
    "how much of a run's time failures leave, and how often to take a checkpoint: simulated, and by closed form",
    (
        Argument("--nodes", type=int, required=True, help="that the run trains on"),
        Argument("--devices-per-node", type=int, metavar="N", help="that are paid (default: 8)"),
        Argument(
            "--mtbf-hours", type=float, required=True, metavar="HOURS",
            help="mean time between failures of ONE node; inf: none fails",
        ),
        Argument(
            "--checkpoint-s", type=float, required=True, metavar="S", help="training stands still for a checkpoint"
        ),
        Argument(
            "--write-s", type=float, metavar="S",
            help="then until it is committed, behind training; a failure before falls back to the one before "
            "(default: 0)",
        ),
        Argument(
            "--restart-s", type=float, required=True, metavar="S",
            help="from an interruption until training goes on, nodes being there",
        ),
        Argument(
            "--checkpoint-every-s", default="auto", metavar="S",
            help="training between two checkpoints (default: auto, the best that is found)",
        ),
        Argument("--days", type=float, help="of wall time (default: 14)"),
        Argument("--spares", type=int, metavar="N", help="nodes that stand by and are paid (default: 0)"),
        Argument("--repair-hours", type=float, metavar="HOURS", help="until a failed node is back (default: 12)"),
        Argument("--elastic", action="store_true", help="go on with the nodes that are left, and grow again"),
        Argument(
            "--preemptions-per-day", type=float, metavar="RATE", help="of ONE node, on spot (default: 0, on demand)"
        ),
        Argument(
            "--notice-s", type=float, metavar="S",
            help="before a preemption; if a checkpoint fits in, no work is lost (default: none)",
        ),
        Argument(
            "--return-hours", type=float, metavar="HOURS",
            help="until a preempted node's place is filled (default: --repair-hours)",
        ),
        Argument("--price", type=float, help="of a device-hour, in any currency"),
        Argument("--seeds", type=int, default=20, help="simulated runs at each interval (default: 20)"),
        Argument("--picture", default="", metavar="FILE.png", help="draw goodput over the checkpoint interval"),
    ),
    _goodput,
    example=EXAMPLE,
)  # fmt: skip
