"""What a bench's module is asked on its command line."""

import argparse


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """With the module's text as its help, and nothing to ask for yet."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m {module}", description=doc, formatter_class=shape)


def nothing_but_help(module: str, doc: str | None) -> None:
    """Of a module that `python -m bench` starts: what it needs comes in environment variables, `BENCH_*`."""
    asked = parser(module, doc)
    asked.epilog = "python -m bench starts it, and says in environment variables (BENCH_*) what it is to do."
    asked.parse_known_args()
