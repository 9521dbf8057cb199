"""`rtrain gate`: what it takes, and what it does."""

import argparse
import sys

from rtrain.cli.verb import Argument, Verb, answer


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
    verdict = gate.judge(
        options.target, options.champion, say=lambda text: print(f"gate: {text}", file=sys.stderr, flush=True)
    )
    answer(options, verdict.to_json(), verdict)
    return 0 if verdict.passed else 1


RELEASE = (
    Verb(
        "gate",
        "judge a finished run's export: does it load, answer as trained, take the champion's requests, and score no "
        "worse; the record stays beside it (exit code 1: refused)",
        (
            Argument("target", metavar="RUN", help="the run's folder, or its export's"),
            Argument("--champion", metavar="RUN", help="who answers now (default: nobody yet)"),
            Argument("--metric", default="", help="what it may not be worse by (default: evaluation.monitor)"),
            Argument(
                "--margin", type=float, default=0.0,
                help="how much worse the 95%% interval of the metric's difference may reach (default: 0)",
            ),
            Argument(
                "--slice-margin", type=float, default=0.01, help="how much worse it may be in a slice (default: 0.01)"
            ),
            Argument(
                "--calibration", type=float, default=0.1,
                help="how far, as a share, mean probability and label may be apart (default: 0.1)",
            ),
            Argument("--size-mb", type=float, help="most that its files may have"),
            Argument("--memory-mb", type=float, help="most that a process may hold that answers"),
            Argument("--latency-ms", type=float, help="most that the 99th percentile of one row's time may be"),
        ),
        _gate,
    ),
)  # fmt: skip
