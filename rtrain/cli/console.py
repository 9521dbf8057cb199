"""The `rtrain` command: what is not of one recipe, and the recipes' verbs by their file."""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from rtrain.cli.answer import guarded, refuse
from rtrain.cli.recipe import RECIPE_VERBS, VERBS, serve
from rtrain.errors import UserError
from rtrain.version import VERSION


def console() -> None:
    """The `rtrain` command."""
    given = sys.argv[1:]
    sys.exit(guarded(lambda: _console(given), as_json="--json" in given))


def _console(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rtrain",
        description="Distributed training on Ray. A recipe's own verbs: rtrain train RECIPE, or python RECIPE train.",
        allow_abbrev=False,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"rtrain {VERSION}", help="show rtrain's version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def add(name: str, text: str, **options: Any) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        verb.error = refuse  # type: ignore[method-assign]
        verb.add_argument("--json", action="store_true", help="one line of JSON on stdout")
        return verb

    doctor = add("doctor", "say what is wrong with this machine, and how to mend it")
    doctor.add_argument("--storage", default="runs", help="where runs are to be written (default: runs)")
    doctor.add_argument("--port", type=int, default=8000, help="port that Ray Serve is to use (default: 8000)")
    first = add("init", "write a commented first recipe from a data file's own columns")
    first.add_argument("data", help="CSV, TSV, JSON lines, Parquet, or a folder of Parquet files")
    first.add_argument("--label", default="", help="column of 0 and 1, or a rule: 'rating>=4' (default: by its name)")
    first.add_argument("--out", default="recipe.py", help="the recipe; never overwritten (default: recipe.py)")
    first.add_argument("--data-out", default="", help="Parquet made of the data, if it has to be (default: beside it)")
    data = add("data", "get and prepare data sets")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="fetch a named data set into the cache")
    get.add_argument("name", help="ml-100k")
    tokenize = actions.add_parser("tokenize", help="text files -> token shards for a language model")
    tokenize.add_argument("sources", nargs="+", help="text files, or folders of them; a file is a document")
    tokenize.add_argument("--out", required=True, help="folder of the shards; new or empty")
    tokenize.add_argument("--tokenizer", default="bytes", help="bytes, bpe:SIZE (trained here), or a tokenizer.json")
    for action in (get, tokenize):
        action.error = refuse  # type: ignore[method-assign]
        action.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    served = add("serve", "serve a finished run, or its export, until Ctrl-C")
    served.add_argument("target", help="the run's folder or its export/ folder")
    served.add_argument("--replicas", type=int, default=1, metavar="N", help="how many answer (default: 1)")
    served.add_argument("--port", type=int, default=8000, help="on localhost (default: 8000)")
    report = add("report", "write a run's report.html anew")
    report.add_argument("target", help="the run's folder")
    compared = add("compare", "metrics, curves and config differences of runs side by side, as a page")
    compared.add_argument("targets", nargs="+", metavar="RUN", help="the runs' folders, two or more")
    compared.add_argument("--out", default="compare.html", help="the page (default: compare.html)")
    ledger = add("ledger", "say which samples a run's committed steps consumed, epoch by epoch")
    ledger.add_argument("target", help="the run's folder")
    ledger.add_argument("--verify", action="store_true", help="prove against the data: none lost, none repeated")
    listed = add("checkpoints", "list, verify, show, compare, export or prune a run's checkpoints")
    listed.add_argument("target", help="the run's folder")
    listed.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "verify", "show", "compare", "export", "prune"),
        help="list (default); verify [STEP ...]: read every byte back; show [STEP]; compare STEP STEP; "
        "export [STEP] --to FOLDER: the model as one safetensors file; prune --keep N",
    )
    listed.add_argument("steps", nargs="*", type=int, metavar="STEP", help="none: the newest (verify: all)")
    listed.add_argument("--to", help="export: folder or URI to write to")
    listed.add_argument("--keep", type=int, help="prune: newest intact ones that stay, beside the best")
    for name in RECIPE_VERBS:
        # Its --help is the recipe's, with the recipe's own fields.
        verb = add(name, f"{VERBS[name]} (of a recipe)", add_help=False)
        verb.add_argument("recipe", nargs="?", help="path of the recipe's Python file")

    options, rest = parser.parse_known_args(given)
    if options.verb is None:
        parser.print_help()
        return 0
    if options.verb in RECIPE_VERBS:
        return _run_recipe(options, rest)
    if rest:
        raise UserError(f"rtrain {options.verb}: it takes no {' '.join(rest)}; see rtrain {options.verb} --help")
    if options.verb == "doctor":
        from rtrain.doctor import examine, render, to_json

        findings = examine(storage=options.storage, ports=(options.port,))
        print(to_json(findings) if options.json else render(findings))
        return 1 if any(f.status == "fail" for f in findings) else 0
    if options.verb == "init":
        from rtrain.starter import start

        started = start(options.data, label=options.label, out=options.out, data_out=options.data_out)
        print(json.dumps(started.to_json()) if options.json else started)
    elif options.verb == "data":
        if options.action == "tokenize":
            from rtrain.data.tokenize import tokenize as write

            told = {"folder": str(write(options.sources, options.out, tokenizer=options.tokenizer, say=_tell))}
        else:
            from rtrain.data import sources

            told = {"name": options.name, "folder": str(sources.get(options.name))}
        print(json.dumps(told) if options.json else told["folder"])
    elif options.verb == "serve":
        serve(options.target, options.replicas, options.port, options.json)
    elif options.verb == "ledger":
        from rtrain.training.proof import account

        said = account(options.target, verify=options.verify)
        print(json.dumps(said.to_json()) if options.json else said)
        return 0 if said.holds or not options.verify else 1
    elif options.verb == "checkpoints":
        from rtrain.cli.checkpoints import checkpoints

        return checkpoints(options)
    elif options.verb == "compare":
        from rtrain.report.compare import compare, write_compare

        page = write_compare(options.targets, options.out)
        print(json.dumps(compare(options.targets) | {"page": page}) if options.json else page)
    elif options.verb == "report":
        from rtrain.report import write_report

        path = write_report(options.target)
        print(json.dumps({"report": path}) if options.json else path)
    return 0


def _run_recipe(options: argparse.Namespace, rest: list[str]) -> int:
    """Hand over to the recipe's own main()."""
    recipe, usage = options.recipe, f"rtrain {options.verb} RECIPE [options] [--key value ...]"
    if recipe is None and {"-h", "--help"} & set(rest):
        print(f"usage: {usage}\n\n{VERBS[options.verb]}\n\nrtrain {options.verb} RECIPE --help lists every option")
        return 0
    if recipe is None:
        raise UserError(f"rtrain {options.verb}: which recipe? Give the path of its Python file: {usage}")
    path = Path(recipe)
    if not path.is_file():
        raise UserError(f"rtrain {options.verb}: there is no recipe {recipe!r}. Give the path of a Python file")
    try:
        compile(path.read_bytes(), recipe, "exec")
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"rtrain {options.verb}: {recipe}{line} is not Python ({why}). A recipe is a Python file that ends with "
            "main(run)"
        ) from None
    sys.argv = [recipe, options.verb, *rest, *(["--json"] if options.json else [])]
    sys.path.insert(0, str(path.resolve().parent))
    runpy.run_path(recipe, run_name="__main__")
    raise UserError(
        f"rtrain {options.verb}: {recipe} ended without calling rtrain.main(), so nothing was done. "
        'A recipe ends with: if __name__ == "__main__": main(run)'
    )


def _tell(text: str) -> None:
    print(f"rtrain: {text}", file=sys.stderr, flush=True)
