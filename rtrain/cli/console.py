"""The `rtrain` command: what is not of one recipe, and the recipes' verbs by their file."""

import argparse
import runpy
import sys
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


def console() -> None:
    """The `rtrain` command."""
    given = sys.argv[1:]
    again = next((verb.again for verb in OWN_VERBS if verb.name in given[:1]), Verb.again)
    sys.exit(guarded(lambda: _console(given), as_json="--json" in given, again=again))


def _console(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rtrain",
        description="Distributed training on Ray. A recipe's own verbs: rtrain train RECIPE, or python RECIPE train.",
        allow_abbrev=False,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"rtrain {VERSION}", help="show rtrain's version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

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


def _add(verbs: Any, verb: Verb, **options: Any) -> None:
    """A verb, with its actions; each answers --json too."""
    if verb.example:
        options |= {"epilog": verb.example, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = verbs.add_parser(verb.name, help=verb.text, description=verb.text, allow_abbrev=False, **options)
    parser.error = refuse
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    for argument in verb.arguments:
        parser.add_argument(*argument.names, **argument.options)
    if verb.run:
        parser.set_defaults(run=verb.run)
    if verb.actions:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for action in verb.actions:
            _add(actions, action)


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
