"""rtrain's own verbs: what each takes, and what it does."""

import argparse
import sys
from dataclasses import replace

from rtrain.cli.calibrate import CALIBRATE
from rtrain.cli.decoding import DECODING
from rtrain.cli.endpoint import ENDPOINT
from rtrain.cli.goodput import GOODPUT
from rtrain.cli.own import MODULE
from rtrain.cli.recipe import serve
from rtrain.cli.release import RELEASE
from rtrain.cli.runs import RUNS
from rtrain.cli.scale import SCALE
from rtrain.cli.stages import STAGES, stages_of
from rtrain.cli.verb import Argument, Verb, answer, under
from rtrain.errors import UserError


def _doctor(options: argparse.Namespace) -> int:
    from rtrain.doctor import examine, render, to_json

    findings = examine(storage=options.storage, ports=(options.port,))
    print(to_json(findings) if options.json else render(findings))
    return 1 if any(f.status == "fail" for f in findings) else 0


def _init(options: argparse.Namespace) -> int:
    from rtrain.starter import start

    started = start(options.data, label=options.label, out=options.out, data_out=options.data_out)
    answer(options, started.to_json(), started)
    return 0


def _criteo(options: argparse.Namespace) -> int:
    from rtrain.data.criteo import convert

    def say(text: str) -> None:
        print(f"rtrain: {text}", file=sys.stderr, flush=True)

    folder = convert(options.source, options.out, hashed=options.rows, say=say)
    answer(options, {"folder": folder}, folder)
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from rtrain.cli.prepare import run

    made = run(options)
    answer(options, made.to_json(), made)
    return 0


def _get(options: argparse.Namespace) -> int:
    from rtrain.data import sources

    folder = str(sources.get(options.name))
    answer(options, {"name": options.name, "folder": folder}, folder)
    return 0


def _tokenize(options: argparse.Namespace) -> int:
    from rtrain.data.tokenize import tokenize

    def say(text: str) -> None:
        print(f"rtrain: {text}", file=sys.stderr, flush=True)

    folder = tokenize(options.sources, options.out, tokenizer=options.tokenizer, say=say)
    answer(options, {"folder": folder}, folder)
    return 0


def _texts(options: argparse.Namespace) -> int:
    from rtrain.evaluation.texts import measure_texts

    found = measure_texts(options.source)
    answer(options, found, "\n".join(f"{name:8} {value:.4g}" for name, value in found.items()))
    return 0


def _online(options: argparse.Namespace) -> int:
    from rtrain.cli.online import measure, spell

    found = measure(options)
    answer(options, found, spell(found))
    return 0


def _serve(options: argparse.Namespace) -> int:
    if options.stop:
        return _stop(options)
    if options.target is None:
        raise UserError("serve: which? Give a run's folder, or its export/ folder")
    stages = stages_of(options)
    served = replace(stages, retriever=options.target) if stages else options.target
    serve(served, options, options.port)
    return 0


def _stop(options: argparse.Namespace) -> int:
    """Of a process that has ended, or of another one."""
    from rtrain.launch.session import join_running
    from rtrain.serving.app import APPLICATION, end

    if options.target is not None:
        raise UserError("serve: --stop ends what is served, and a run is what to serve. Give one of them")
    with join_running("serve"):
        if not end(APPLICATION):
            raise UserError("serve: nothing to stop is served on this Ray; rtrain endpoints lists endpoints")
    answer(options, {"stopped": APPLICATION}, "what was served is taken down")
    return 0


def _report(options: argparse.Namespace) -> int:
    from rtrain.report import write_report
    from rtrain.tuning.page import is_search, report_of

    path = report_of(options.target) if is_search(options.target) else write_report(options.target)
    answer(options, {"report": path}, path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from rtrain.report.compare import compare, spell_differences, write_compare

    found = compare(options.targets)
    page = write_compare(options.targets, options.out, found)
    answer(options, found | {"page": page}, "\n".join(filter(None, (spell_differences(found), page))))
    return 0


def _ledger(options: argparse.Namespace) -> int:
    from rtrain.ledger.proof import account

    found = account(options.target, verify=options.verify)
    answer(options, found.to_json(), found)
    return 0 if found.holds or not options.verify else 1


def _checkpoints(options: argparse.Namespace) -> int:
    from rtrain.cli.checkpoints import checkpoints

    return checkpoints(options)


RUN = Argument("target", help="the run's folder")
ONLINE = (
    Argument("log", help="one row an event: Parquet, CSV or JSON lines, or a folder of them; a path or any URI"),
    Argument("--by", metavar="COLUMNS", help="one row of rates for each of their values: variant, or variant,country"),
    Argument("--against", metavar="VALUE", default="", help="of the one column of --by: the others differ by how much"),
    Argument(
        "--assigned", metavar="MODEL:VERSION", default="",
        help="a version that an endpoint tried: the log of changes tells who had it, and who the champion, by --unit, "
        "the column of who asked (x-rtrain-key, or user); no event needs to name it",
    ),
    Argument(
        "--audit", default="runs/audit", metavar="FOLDER",
        help="the log of changes, for --assigned (default: runs/audit)",
    ),
    Argument("--session", metavar="COLUMN", help="which visit the event is of (default: session_id)"),
    Argument("--event", metavar="COLUMN", help="what happened (default: event)"),
    Argument("--time", metavar="COLUMN", help="when: numbers, times or ISO 8601 text (default: timestamp)"),
    Argument("--query", metavar="COLUMN", help="which search it is of (default: query_id, if there)"),
    Argument("--item", metavar="COLUMN", help="what was clicked (default: item_id, if there)"),
    Argument("--results", metavar="COLUMN", help="how many a search found (default: results, if there)"),
    Argument(
        "--unit",
        metavar="COLUMN",
        help="whose events are independent of others', for the intervals: user_id where an experiment was drawn by "
        "user (default: the session)",
    ),
    *(
        Argument(option, metavar="EVENTS", help=f"what the log calls {text}")
        for option, text in (
            ("--impression", "what was shown (default: impression,view)"),
            ("--click", "a click (default: click); several: click,tap"),
            ("--add-to-cart", "an add to the cart (default: add_to_cart)"),
            ("--purchase", "a purchase (default: purchase)"),
            ("--search", "a search (default: search)"),
            ("--other", "events of none of these kinds, which engagement counts (default: none)"),
        )
    ),
    Argument(
        "--memory-gb", type=float, default=1.0, help="for DuckDB; beyond, it uses a temporary folder (default: 1)"
    ),
)  # fmt: skip
PREPARE = (
    Argument("source", help="CSV, TSV, JSON lines or Parquet, or a folder of one of these; a path or any URI"),
    Argument("--out", required=True, help="folder or URI of what is made; new or empty"),
    Argument(
        "--time",
        required=True,
        metavar="COLUMN",
        help="what rows are sorted by: seconds since 1970, timestamps, or ISO 8601 text (UTC where it names no zone)",
    ),
    Argument(
        "--vocabulary",
        action="append",
        default=[],
        metavar="COLUMN",
        help="its values become rows of a table: 1 the most frequent, 0 what is missing or rare; may be repeated",
    ),
    Argument("--label", default="", metavar="COLUMN", help="what the proposed schema predicts (default: you name it)"),
    Argument("--min-count", type=int, default=1, help="how often a value must come for a row of its own (default: 1)"),
    Argument(
        "--text", action="append", default=[], metavar="COLUMN", help="words, whatever they look like; may be repeated"
    ),
    Argument(
        "--aggregate",
        action="append",
        default=[],
        metavar="WHAT",
        help="what strictly older rows of a key say, as a new column; may be repeated: 'count(user_id, 7d)' rows; "
        "'mean(item_id, label, 7d, prior=0.1, prior_rows=20)' of a column; 'trend(item_id, 1d, 7d)' how much more "
        "often of late; 'recency(user_id)' seconds since its last; 'session(user_id, 30m)' the visit so far",
    ),
    Argument("--memory-gb", type=float, default=1.0, help="for DuckDB in each task; beyond, it uses disk (default: 1)"),
)
VERBS = (
    Verb(
        "doctor",
        "say what is wrong with this machine, and how to mend it",
        (
            Argument("--storage", default="runs", help="where runs are to be written (default: runs)"),
            Argument("--port", type=int, default=8000, help="port that Ray Serve is to use (default: 8000)"),
        ),
        _doctor,
    ),
    Verb(
        "init",
        "write a commented first recipe from a data file's own columns",
        (
            Argument("data", help="CSV, TSV, JSON lines, Parquet, or a folder of Parquet files"),
            Argument("--label", default="", help="column of 0 and 1, or a rule: 'rating>=4' (default: by its name)"),
            Argument("--out", default="recipe.py", help="the recipe; never overwritten (default: recipe.py)"),
            Argument("--data-out", default="", help="Parquet made of the data, if it has to be (default: beside it)"),
        ),
        _init,
    ),
    Verb(
        "data",
        "get and prepare data sets",
        actions=(
            Verb("get", "fetch a named data set into the cache", (Argument("name", help="ml-100k"),), _get),
            Verb(
                "criteo",
                "Criteo's click logs, from their published text to Parquet",
                (
                    Argument("source", help="the text: a path or any URI, also compressed"),
                    Argument("--out", required=True, help="folder or URI of the Parquet; new or empty"),
                    Argument("--rows", type=int, default=2**18, help="rows of each word's table (default: 262144)"),
                ),
                _criteo,
            ),
            Verb(
                "prepare",
                "tables or logs -> sorted Parquet with vocabularies, statistics and point-in-time aggregates; after a "
                "kill the same command goes on",
                PREPARE,
                _prepare,
            ),
            Verb(
                "tokenize",
                "text files -> token shards for a language model",
                (
                    Argument(
                        "sources", nargs="+", help="text files, or folders of them, also s3://...; a file is a document"
                    ),
                    Argument("--out", required=True, help="folder or URI of the shards; new or empty"),
                    Argument(
                        "--tokenizer", default="bytes", help="bytes, bpe:SIZE (trained here), or a tokenizer.json"
                    ),
                ),
                _tokenize,
            ),
        ),
    ),
    Verb(
        "metrics",
        "measure what no run measures",
        actions=(
            Verb(
                "text",
                "BLEU and ROUGE of generated text",
                (
                    Argument(
                        "source",
                        help='JSON lines anywhere: {"prediction": "...", "reference": "..."}, or "references": a list',
                    ),
                ),
                _texts,
            ),
            Verb(
                "online",
                "click, cart, conversion, exit and zero-result rates and engagement of an event log, by variant",
                ONLINE,
                _online,
            ),
        ),
    ),
    Verb(
        "serve",
        "serve a finished run, or its export, until Ctrl-C",
        (
            Argument("target", nargs="?", metavar="RUN", help="the run's folder or its export/ folder"),
            Argument("--stop", action="store_true", help="end what another command or a script serves, or did"),
            MODULE,
            Argument("--port", type=int, default=8000, help="on localhost (default: 8000)"),
            Argument("--grpc-port", type=int, default=None, metavar="N", help="answer gRPC there too (default: not)"),
            Argument(
                "--replace",
                action="store_true",
                help="take the place of what another process serves there, which answers until the new one does, and "
                "goes on where that does not start",
            ),
            *SCALE,
            *under("two stages", Argument("--ranker", metavar="RUN", help="it orders what the run finds")),
            *STAGES,
            *DECODING,
        ),
        _serve,
        again="serves it",
    ),
    Verb("report", "write a run's report.html anew, or a search's while it goes on", (RUN,), _report),
    Verb(
        "compare",
        "metrics, curves and config differences of runs side by side, as a page",
        (
            Argument("targets", nargs="+", metavar="RUN", help="the runs' folders, two or more"),
            Argument("--out", default="compare.html", help="the page (default: compare.html)"),
        ),
        _compare,
    ),
    *RUNS,
    *RELEASE,
    *ENDPOINT,
    CALIBRATE,
    GOODPUT,
    Verb(
        "ledger",
        "say which samples a run's committed steps consumed, epoch by epoch",
        (
            RUN,
            MODULE,
            Argument("--verify", action="store_true", help="prove against the data: none lost, none repeated"),
        ),
        _ledger,
    ),
    Verb(
        "checkpoints",
        "list, verify, show, compare, export or prune a run's checkpoints",
        (
            RUN,
            Argument(
                "action",
                nargs="?",
                default="list",
                choices=("list", "verify", "show", "compare", "export", "prune"),
                help="list (default); verify [STEP ...]: read every byte back; show [STEP]; compare STEP STEP; "
                "export [STEP] --to FOLDER: the model as one safetensors file; prune --keep N",
            ),
            Argument("steps", nargs="*", type=int, metavar="STEP", help="none: the newest (verify: all)"),
            Argument("--to", help="export: folder or URI to write to"),
            Argument("--keep", type=int, help="prune: newest intact ones that stay, beside the best"),
        ),
        _checkpoints,
    ),
)
