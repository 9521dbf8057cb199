"""The `rtrain` command: what is not of one recipe, and the recipes' verbs by their file."""

import argparse
import runpy
import sys
import textwrap
from pathlib import Path
from typing import Any

from rtrain.cli.answer import guarded, refuse
from rtrain.cli.own import import_own
from rtrain.cli.recipe import RECIPE_VERBS, VERBS
from rtrain.cli.verb import Argument, Verb
from rtrain.cli.verbs import VERBS as OWN_VERBS
from rtrain.errors import UserError
from rtrain.version import VERSION

RECIPE = "path of the recipe's Python file"
OF_RUNS = ("repeat", "compare")
"""Verbs that are also found below `rtrain runs`."""
TOPICS = {
    "begin": ("doctor", "init", "data"),
    "of a recipe (RECIPE, or python RECIPE VERB)": RECIPE_VERBS,
    "foresee": ("calibrate", "goodput"),
    "finished runs": ("runs", "report", "compare", "metrics", "ledger", "checkpoints", "repeat", "sync"),
    "hand-off": ("gate", "card", "promote", "versions", "audit"),
    "serve": ("serve", "release", "endpoints", "share", "rollback"),
}
"""What `rtrain --help` shows together; all verbs."""


def console() -> None:
    """The `rtrain` command."""
    given = sys.argv[1:]
    again = next((verb.again for verb in OWN_VERBS if verb.name in given[:1]), Verb.again)
    sys.exit(guarded(lambda: _console(given), as_json="--json" in given, again=again))


def _console(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rtrain",
        usage="rtrain [-h] [--version] VERB ...",
        description="Distributed training on Ray. rtrain VERB --help says what a verb takes.",
        epilog=_topics(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"rtrain {VERSION}", help="show rtrain's version")
    verbs = parser.add_subparsers(prog="rtrain", dest="verb", metavar="VERB", help=argparse.SUPPRESS)

    for verb in OWN_VERBS:
        _add(verbs, verb)
    for name in RECIPE_VERBS:
        # Its --help is the recipe's, with the recipe's own fields.
        of_recipe = Verb(name, f"{VERBS[name]} (of a recipe)", (Argument("recipe", nargs="?", help=RECIPE),))
        _add(verbs, of_recipe, add_help=False)

    if len(given) > 2 and given[0] == "runs" and given[1] in OF_RUNS and not given[2].startswith("-"):
        given = given[1:]  # `rtrain runs repeat` alone lists a folder of that name
    options, rest = parser.parse_known_args(given)
    if options.verb is None:
        parser.print_help()
        return 0
    if options.verb in RECIPE_VERBS:
        return _run_recipe(options, rest)
    if rest:
        raise UserError(f"rtrain {options.verb}: it takes no {' '.join(rest)}; see rtrain {options.verb} --help")
    import_own(options)
    return int(options.run(options))


def _topics() -> str:
    """What the verbs do, topic by topic."""
    does = {verb.name: verb.text for verb in OWN_VERBS} | {name: VERBS[name] for name in RECIPE_VERBS}
    lines = []
    for topic, names in TOPICS.items():
        lines.append(f"{topic}:")
        for name in names:
            lines += textwrap.wrap(does[name], 100, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15)
        lines.append("")
    return "\n".join(lines).rstrip()


def _add(verbs: Any, verb: Verb, **options: Any) -> None:
    """A verb, with its actions; each answers --json too."""
    if verb.example:
        options |= {"epilog": verb.example, "formatter_class": argparse.RawDescriptionHelpFormatter}
    said = textwrap.fill(verb.text, 100)
    parser = verbs.add_parser(verb.name, help=verb.text, description=said, allow_abbrev=False, **options)
    parser.error = refuse
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    groups: dict[str, Any] = {"": parser}
    for argument in verb.arguments:
        if argument.under not in groups:
            groups[argument.under] = parser.add_argument_group(argument.under)
        groups[argument.under].add_argument(*argument.names, **argument.options)
    if len(groups) > 1:
        parser.usage = " ".join([parser.prog, "[options]", *_needed(verb)])
    if verb.run:
        parser.set_defaults(run=verb.run)
    if verb.actions:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for action in verb.actions:
            _add(actions, action)


def _needed(verb: Verb) -> list[str]:
    """What cannot be left out, as the usage of a verb shows it that takes too much for all of it to be read there."""
    words = []
    for one in verb.arguments:
        name, metavar = one.names[0], one.options.get("metavar", one.names[0].lstrip("-").upper())
        if one.options.get("required"):
            words.append(f"{name} {metavar}")
        elif not name.startswith("-"):
            words.append(f"[{metavar}]" if one.options.get("nargs") == "?" else metavar)
    return words


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
