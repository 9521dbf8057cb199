"""The command line: the verbs of a recipe (`main`), and the `rtrain` command (`console`).

Every verb takes `--json` (one line of JSON on stdout, everything else on stderr). Exit codes:
0 done, 1 the run failed, 2 something that the user gave must be mended, 130 interrupted, 143 told to stop.
"""

from rtrain.cli.console import console
from rtrain.cli.recipe import main

__all__ = ["console", "main"]
