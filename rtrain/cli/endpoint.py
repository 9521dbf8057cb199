"""`rtrain release`, `endpoints`, `share` and what `rollback --endpoint` does: what they take, and what they do."""

import argparse
import sys
from typing import Any

from rtrain.cli.decoding import DECODING, decoding_said
from rtrain.cli.own import MODULE
from rtrain.cli.registry import MODEL, REASON, REGIONS, REGISTRY
from rtrain.cli.scale import SCALE, scale_said
from rtrain.cli.stages import STAGES, stages_said
from rtrain.cli.verb import Argument, Verb, answer, under
from rtrain.errors import ClusterError, UserError


def _said(text: str, verb: str = "release") -> None:
    print(f"{verb}: {text}", file=sys.stderr, flush=True)


def _release(options: argparse.Namespace) -> int:
    """Exit code 1 of a version that is refused or taken back."""
    from rtrain.endpoint.canary import Canary, Limits
    from rtrain.endpoint.online import Online
    from rtrain.launch.session import join_running

    online = Online(log=options.online, rate=options.rate, worse=options.worse / 100) if options.online else None
    limits = Limits(
        failed=options.failed,
        slower=options.slower,
        drift=options.drift,
        order=options.order,
        dearer=options.dearer,
        grown_mb=options.grown_mb,
        online=online,
    )
    canary = Canary(
        steps=_shares(options.steps), seconds=options.seconds, answers=options.answers,
        patience_s=max(options.patience, options.seconds), shadow=options.shadow / 100, limits=limits,
    )  # fmt: skip
    most = (options.patience + options.seconds + 60) * len(canary.shares)
    if options.regions:
        return _over_regions(options, canary, most)
    with join_running("release"):
        endpoint = _endpoint(options)
        endpoint.refuse_while_tried()  # before the gate, which takes a while
        if not _judged(options, endpoint.stages_of_release()):
            return 1
        version, url = endpoint.release(options.target, options.reason, canary, say=_said), endpoint.url
        if options.go_on:
            answer(options, version.to_json() | {"url": url}, f"{version}\n{url}/-/ shows how it goes")
            return 0
        settled = endpoint.settled(version.version, timeout_s=most, say=_said)
    if settled is None:
        text = (
            f"version {version.version} waits for a person: rtrain share {options.model} 100 makes it the champion, "
            f"rtrain rollback {options.model} --endpoint takes it back"
        )
        answer(options, version.to_json() | {"url": url, "settled": None}, text)
        return 0
    who = "answers all requests" if settled.champion else "was taken back"
    text = f"version {settled.version} {who} ({settled.why})\n{url}"
    answer(options, settled.to_json() | {"url": url}, text)
    return 0 if settled.champion else 1


def _over_regions(options: argparse.Namespace, canary: Any, most: float) -> int:
    """Exit code 1 where a region does not take it."""
    from rtrain.endpoint.regions import Region, in_region, joined, release_in

    if options.go_on:
        raise UserError("release: --regions wait for each other, and --go-on for nobody. Leave one of them out")
    regions, endpoint = Region.of(options.regions), _endpoint(options)
    with joined(regions[0]):
        stages = in_region(endpoint, regions[0]).stages_of_release()
    if not _judged(options, stages):
        return 1
    reached = release_in(endpoint, regions, options.target, options.reason, canary, timeout_s=most, say=_said)
    answer(options, reached.to_json(), reached)
    return 0 if reached.everywhere else 1


def _judged(options: argparse.Namespace, stages: Any) -> bool:
    """Whether the gate lets it pass; it is asked where it was not against the champion of now, or of other stages."""
    from rtrain.release.finished import Finished
    from rtrain.release.gate import Gate, pair_of, verdict_of
    from rtrain.release.registry import Registry

    candidate = Finished.read(options.target)
    holder = Registry(options.registry, options.audit).holder(options.model, "champion")
    champion = holder if holder and holder.model != candidate.digest else None
    verdict, against = verdict_of(candidate), champion.model if champion else None
    asked = verdict is None or verdict.stages != pair_of(candidate, stages)
    if verdict and (verdict.champion or {}).get("model") != against:
        asked = asked or against is not None or not verdict.passed  # it was refused beside one that answers no more
    if verdict is None or asked:
        verdict = Gate().judge(options.target, champion.export if champion else None, stages=stages, say=_said)
        print(verdict, file=sys.stderr, flush=True)
    if not verdict.passed:
        refused = [f"{one.check}: {one.said}" for one in verdict.decisions if not one.passed]
        before = "" if asked else f" ({verdict.at}, {verdict.by}; rtrain gate judges it anew)"
        text = f"refused: {'; '.join(refused)}{before}"
        answer(options, {"champion": False, "why": text}, text)
    return verdict.passed


def _endpoints(options: argparse.Namespace) -> int:
    from rtrain.endpoint.actor import endpoints
    from rtrain.launch.session import join_running

    if options.stop and not (options.name and options.reason):
        raise UserError("endpoints: --stop takes one down. Name it, and say why with --reason")
    if options.reason and not options.stop:
        raise UserError("endpoints: --reason is why one is to --stop. Give both, or none")
    if options.regions:
        return _endpoints_of_regions(options)
    with join_running("endpoints"):
        names = endpoints()
        if options.name and options.name not in names:
            there = f"there are {', '.join(names)}" if names else "there is none"
            raise UserError(f"endpoints: no endpoint {options.name!r}; {there}")
        if options.stop:
            _endpoint(options, options.name).stop(options.reason)
            answer(options, {"stopped": options.name}, f"endpoint {options.name!r} is taken down, with all versions")
            return 0
        wanted = [options.name] if options.name else names
        found = [_endpoint(options, name).status() for name in wanted]
    answer(options, {"endpoints": found}, "\n\n".join(map(_spelled, found)) or "there is no endpoint")
    return 0


def _endpoints_of_regions(options: argparse.Namespace) -> int:
    from rtrain.endpoint.regions import Region

    found, failed = list[dict[str, Any]](), dict[str, str]()
    for region in Region.of(options.regions):
        try:
            found += _endpoints_in(options, region)
        except ClusterError as error:  # the others are asked all the same
            failed[region.name] = str(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
    if options.stop and not (found or failed):
        raise UserError(f"endpoints: no endpoint {options.name!r} in these regions")
    if options.stop:
        stopped = [of["region"] for of in found]
        text = f"endpoint {options.name!r} is taken down in {', '.join(stopped) or 'no region'}, with all versions"
        answer(options, {"stopped": options.name, "regions": stopped, "failed": failed}, text)
    else:
        spelled = [f"{of['region']}: {_spelled(of)}" for of in found]
        answer(options, {"endpoints": found, "failed": failed}, "\n\n".join(spelled) or "there is no endpoint")
    return 1 if failed else 0


def _endpoints_in(options: argparse.Namespace, region: Any) -> list[dict[str, Any]]:
    """What the endpoints of a region say, or where the one was that is stopped."""
    from rtrain.endpoint.actor import endpoints
    from rtrain.endpoint.regions import joined

    with joined(region):
        wanted = [name for name in endpoints() if options.name in ("", name)]
        if not options.stop:
            return [{"region": region.name} | _endpoint(options, name).status() for name in wanted]
        for name in wanted:
            _endpoint(options, name).stop(options.reason)
            _said(f"{region.name}: it is taken down", "endpoints")
        return [{"region": region.name}] if wanted else []


def _spelled(status: dict[str, Any]) -> str:
    lines = [f"{status['endpoint']}  {status['url']}  {status['step']}"]
    for of in status["versions"]:
        rate = of["answers"] / max(1e-9, status["seconds"])
        p50, p99 = (f"{of[key]:.1f}" if of[key] is not None else "-" for key in ("p50_ms", "p99_ms"))
        lines.append(
            f"  version {of['version']:<4} {of['role']:<9} {of['share']:>4.0%}  {rate:8.1f} answers/s  "
            f"{of['failed']} failed  p50 {p50} ms  p99 {p99} ms  run {of['run']}"
            + (f" on {of['engine']}" if of.get("engine") == "vllm" else "")
        )
    for of in status["decisions"][:5]:
        version = f" version {of['version']}" if of.get("version") else ""
        lines.append(f"  {of['at'][:19]} {of['what']}{version}: {of['why']} ({of['by']})")
    return "\n".join(lines)


def _share(options: argparse.Namespace) -> int:
    from rtrain.launch.session import join_running

    with join_running("share"):
        endpoint = _endpoint(options, options.model)
        endpoint.hold(options.percent / 100, options.reason)
        status = endpoint.status()
    answer(options, status, _spelled(status))
    return 0


def roll_back(options: argparse.Namespace) -> int:
    """What is served goes back, and the registry with it."""
    from rtrain.endpoint.regions import Region, roll_back_in
    from rtrain.launch.session import join_running

    if options.regions:
        endpoint, regions = _endpoint(options, options.model), Region.of(options.regions)
        reached = roll_back_in(endpoint, regions, options.reason, say=lambda text: _said(text, "rollback"))
        answer(options, reached.to_json(), reached)
        return 0 if reached.everywhere else 1
    with join_running("rollback"):
        done = _endpoint(options, options.model).rollback(options.reason)
    answer(options, {"done": done}, done)
    return 0


def _endpoint(options: argparse.Namespace, name: str = "") -> Any:
    from rtrain.endpoint.endpoint import Endpoint

    names = ("port", "host", "routers", "registry", "audit", "state", "page", "grpc_port")
    given = {key: getattr(options, key) for key in names if hasattr(options, key)}
    if hasattr(options, "replicas"):
        said = {"replicas": scale_said(options), "decoding": decoding_said(options), "stages": stages_said(options)}
        given |= {name: changes for name, changes in said.items() if changes}
    return Endpoint(name=name or options.model, **given)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        raise UserError(f"--steps: percents with commas between them, like 1,10,50,100, got {text!r}") from None


AS_BEFORE = """\
What is said of two stages, answers of a language model and replicas is kept from version to version: the defaults are
of the first one, and a later release changes what it says alone. --guard, --draft, --features, --history none and
--guesses, --shards, --gpus, --ahead-s, --season-s 0 take back, and --engine rtrain; --replicas 4 takes back what
foresees the load, too."""

ENDPOINT = (
    Verb(
        "release",
        "gate a finished run's export, and let it answer a rising share of an endpoint's requests, until it is the "
        "champion or is taken back by itself (exit code 1)",
        (
            Argument("target", metavar="RUN", help="the run's folder, or its export's"),
            Argument("--as", dest="model", required=True, metavar="NAME", help="the model, and the endpoint's path"),
            REASON,
            *under(
                "how it takes over",
                Argument(
                    "--steps", default="1,10,50,100",
                    help="percents of the requests; the last below 100: an A/B test; 100 alone: blue-green "
                    "(default: 1,10,50,100)",
                ),
                Argument("--seconds", type=float, default=60.0, help="least length of a step (default: 60)"),
                Argument("--answers", type=int, default=200, help="answers that a step needs (default: 200)"),
                Argument(
                    "--patience", type=float, default=3600.0, help="seconds that a step waits for them (default: 3600)"
                ),
                Argument(
                    "--shadow", type=float, default=0.0,
                    help="percent of the requests that it is asked too before, unseen by those who ask (default: 0)",
                ),
                Argument(
                    "--go-on", action="store_true", help="return once it has its first share; the endpoint decides"
                ),
                REGIONS,
            ),
            *under(
                "what takes it back",
                Argument(
                    "--failed", type=float, default=0.005,
                    help="share of failures beyond the champion's (default: 0.005)",
                ),
                Argument(
                    "--slower", type=float, default=1.5, help="times the champion's 90th percentile (default: 1.5)"
                ),
                Argument(
                    "--drift", type=float, default=0.2,
                    help="distance of the scores' distributions, 0 to 1 (default: 0.2)",
                ),
                Argument(
                    "--order", type=float, default=0.0,
                    help="of a model that scores rows, least rank correlation of both versions' scores of the same "
                    "rows, -1 to 1 (default: 0)",
                ),
                Argument(
                    "--dearer", type=float, default=1.0,
                    help="of a language model, nats that a token of what is asked may cost it more (default: 1)",
                ),
                Argument("--grown-mb", type=float, default=500.0, help="what memory may grow by (default: 500)"),
                Argument("--online", metavar="LOG", default="", help="event log whose --rate it may not lower"),
                Argument("--rate", default="ctr", help="of rtrain metrics online (default: ctr)"),
                Argument("--worse", type=float, default=0.0, help="percent that the rate may be worse by (default: 0)"),
            ),
            MODULE,
            *under(
                "two stages",
                Argument(
                    "--retriever", metavar="RUN",
                    help="RUN is a ranking model that orders what this one finds; later releases of the endpoint go "
                    "without it",
                ),
                Argument("--ranker", metavar="RUN", help="RUN is a retrieval model, and this one orders what it finds"),
            ),
            *STAGES,
            *DECODING,
            *SCALE,
            *under(
                "endpoint",
                Argument("--port", type=int, help="of Ray Serve (default: its own where it runs, else 8000)"),
                Argument("--host", default="127.0.0.1", help="that it listens on (default: 127.0.0.1)"),
                Argument(
                    "--grpc-port", type=int, default=None, metavar="N",
                    help="where gRPC answers too, from when the endpoint starts (default: nowhere)",
                ),
                Argument(
                    "--page", action="store_const", const=True, default=None,
                    help="show /NAME/-/ also to others than this machine, where --host lets them ask",
                ),
                Argument(
                    "--routers", type=int, metavar="N", help="that pass requests on, from its start on (default: 2)"
                ),
                Argument(
                    "--state", default="runs/endpoints", metavar="FOLDER", help="of endpoints (default: runs/endpoints)"
                ),
            ),
            *REGISTRY,
        ),
        _release,
        example=AS_BEFORE,
        again="begins it, where no version is being tried; one that is goes on there, and rtrain endpoints shows it",
    ),
    Verb(
        "endpoints",
        "list what is served on the Ray that runs: versions, shares, rates, and what was decided last",
        (
            Argument("name", nargs="?", default="", help="one of them (default: all)"),
            Argument("--stop", action="store_true", help="take it down with all versions; the registry stays as it is"),
            Argument("--reason", default="", help="why it is to --stop, which wants one, for the log"),
            REGIONS,
        ),
        _endpoints,
        again="lists them anew; one that is to stop is taken down",
    ),
    Verb(
        "share",
        "give the version that is being tried a share of the requests, and leave it at that; 100 makes it the champion",
        (
            MODEL,
            Argument("percent", type=float, help="0 to 100"),
            REASON,
        ),
        _share,
    ),
)  # fmt: skip
