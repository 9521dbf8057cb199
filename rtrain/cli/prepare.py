"""`rtrain data prepare`: its options as a config."""

import argparse
import sys

from rtrain.data.prepare import Prepare, parse
from rtrain.data.prepare.prepared import Prepared


def run(options: argparse.Namespace) -> Prepared:
    """What is made by the options that were given."""
    from rtrain.cli.answer import stdout_kept
    from rtrain.launch.preparing import prepare

    config = Prepare(
        source=options.source,
        out=options.out,
        time=options.time,
        vocabularies=tuple(options.vocabulary),
        min_count=options.min_count,
        label=options.label,
        text=tuple(options.text),
        aggregates=tuple(map(parse, options.aggregate)),
        memory_gb=options.memory_gb,
    )
    with stdout_kept():
        return prepare(config, say=lambda text: print(f"rtrain: {text}", file=sys.stderr, flush=True))
