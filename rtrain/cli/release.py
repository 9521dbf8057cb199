"""`rtrain gate`, `promote`, `rollback`, `versions` and `audit`: what they take, and what they do."""

import argparse
import sys

from rtrain.cli.own import MODULE
from rtrain.cli.registry import MODEL, REASON, REGIONS, REGISTRY, registry_of
from rtrain.cli.stages import STAGES, stages_of
from rtrain.cli.verb import Argument, Verb, answer, under
from rtrain.errors import UserError


def _gate(options: argparse.Namespace) -> int:
    """Exit code 1 of a model that is refused."""
    from rtrain.release.gate import Gate
    from rtrain.release.quality import Calibrated, NotWorse, SlicesNotWorse
    from rtrain.release.servable import Faithful, SameRequests, Servable, Within

    budget = Within(size_mb=options.size_mb, memory_mb=options.memory_mb, latency_ms=options.latency_ms)
    quality = (
        NotWorse(metric=options.metric, margin=options.margin),
        SlicesNotWorse(metric=options.metric, margin=options.slice_margin),
    )
    gate = Gate(checks=(Servable(), Faithful(), SameRequests(), *quality, Calibrated(most=options.calibration), budget))
    champion = options.champion
    if options.model:
        if champion:
            raise UserError("gate: --champion and --model both say who answers now. Give one of them")
        holder = registry_of(options, makes=True).holder(options.model, "champion")
        champion = holder.export if holder else None
    stages = stages_of(options)

    def say(text: str) -> None:
        print(f"gate: {text}", file=sys.stderr, flush=True)

    verdict = gate.judge(options.target, champion, stages=stages, say=say)
    answer(options, verdict.to_json(), verdict)
    return 0 if verdict.passed else 1


def _promote(options: argparse.Namespace) -> int:
    registry = registry_of(options, makes=True)
    made = registry.register(options.model, options.target, options.reason)
    made = registry.promote(options.model, made.version, options.reason, alias=options.alias)
    print("promote: the registry alone; what an endpoint serves changes by rtrain release", file=sys.stderr, flush=True)
    answer(options, made.to_json(), made)
    return 0


def _card(options: argparse.Namespace) -> int:
    from rtrain.release.card import card, write_card

    if options.write:
        uri = write_card(options.target, options.use)
        answer(options, {"card": uri}, uri)
    else:
        text = card(options.target, options.use)
        answer(options, {"markdown": text}, text.rstrip())
    return 0


def _rollback(options: argparse.Namespace) -> int:
    if options.regions and not options.endpoint:
        raise UserError("rollback: --regions are where endpoints answer. Give --endpoint too")
    if options.endpoint:
        from rtrain.cli.endpoint import roll_back

        return roll_back(options)
    back = registry_of(options).rollback(options.model, options.reason)
    print("rollback: the registry alone; what an endpoint serves goes back by --endpoint", file=sys.stderr, flush=True)
    answer(options, back.to_json(), back)
    return 0


def _versions(options: argparse.Namespace) -> int:
    found = registry_of(options).versions(options.model)
    if not found:
        raise UserError(f"versions: there is no model {options.model!r} in {options.registry}")
    answer(options, {"versions": [version.to_json() for version in found]}, "\n".join(map(str, found)))
    return 0


def _log(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    entries = list(registry_of(options).log.entries())
    if not entries:
        raise UserError(f"audit show: there is no log in {options.audit!r}. Give its folder with --audit")
    answer(options, {"entries": [asdict(entry) for entry in entries]}, "\n".join(map(str, entries)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Exit code 1 where something was altered."""
    registry = registry_of(options)
    problems = registry.verify()
    if not problems and not registry.log.digests():
        raise UserError(f"audit verify: there is no log in {options.audit!r}. Give its folder with --audit")
    answer(options, {"problems": problems}, "\n".join(problems) or "the log is whole, and the registry is as it says")
    return 1 if problems else 0


RELEASE = (
    Verb(
        "gate",
        "judge a finished run's export: does it load, answer as trained, take the champion's requests, and score no "
        "worse; the record stays beside it (exit code 1: refused)",
        (
            Argument("target", metavar="RUN", help="the run's folder, or its export's"),
            Argument("--champion", metavar="RUN", help="who answers now (default: nobody yet)"),
            Argument("--model", metavar="NAME", help="its champion in the registry answers now"),
            MODULE,
            *under(
                "quality",
                Argument("--metric", default="", help="what it may not be worse by (default: evaluation.monitor)"),
                Argument(
                    "--margin", type=float, default=0.0,
                    help="how much worse the 95%% interval of the metric's difference may reach (default: 0)",
                ),
                Argument(
                    "--slice-margin", type=float, default=0.01,
                    help="how much worse it may be in a slice (default: 0.01)",
                ),
                Argument(
                    "--calibration", type=float, default=0.1,
                    help="how far, as a share, mean probability and label may be apart (default: 0.1)",
                ),
            ),
            *under(
                "budgets",
                Argument("--size-mb", type=float, help="most that its files may have"),
                Argument("--memory-mb", type=float, help="most that a process may hold that answers"),
                Argument("--latency-ms", type=float, help="most that the 99th percentile of one row's time may be"),
            ),
            *under(
                "two stages",
                Argument(
                    "--retriever", metavar="RUN",
                    help="RUN is a ranking model that orders what this one finds; both are judged together",
                ),
                Argument("--ranker", metavar="RUN", help="RUN is a retrieval model, and this one orders what it finds"),
            ),
            *STAGES,
            *REGISTRY,
        ),
        _gate,
    ),
    Verb(
        "card",
        "a model card of a finished run: what it is for, its data, quality, slices, gate and lineage, in Markdown",
        (
            Argument("target", metavar="RUN", help="the run's folder, or its export's"),
            Argument("--use", required=True, metavar="TEXT", help="what the model is for, and what it is not for"),
            Argument("--write", action="store_true", help="put it beside the export as card.md, and print where"),
        ),
        _card,
    ),
    Verb(
        "promote",
        "make a run's export, whose gate was passed, the champion of a model in the registry",
        (
            Argument("target", metavar="RUN", help="the run's folder, or its export's"),
            Argument("--as", dest="model", required=True, metavar="NAME", help="the model that it is a version of"),
            Argument("--alias", default="champion", choices=("champion", "challenger"), help="(default: champion)"),
            REASON,
            *REGISTRY,
        ),
        _promote,
        again="does it, if it was not done yet: rtrain audit show",
    ),
    Verb(
        "rollback",
        "make the champion before this one the champion again",
        (
            MODEL,
            REASON,
            Argument(
                "--endpoint",
                action="store_true",
                help="and let it answer; where a version is being tried, take that one back instead",
            ),
            REGIONS,
            MODULE,
            *REGISTRY,
        ),
        _rollback,
        again="does it, if it was not done yet: rtrain audit show",
    ),
    Verb("versions", "list a model's versions, and which is the champion", (MODEL, *REGISTRY), _versions),
    Verb(
        "audit",
        "the log of what was registered, promoted and taken back, by whom and why",
        actions=(
            Verb("show", "print it, oldest first", REGISTRY, _log),
            Verb("verify", "prove that no entry was altered, cut off or made beside it", REGISTRY, _verify),
        ),
    ),
)  # fmt: skip
