"""`python -m rtrain`: the command where its script is not on PATH."""

from rtrain.cli import console

console()
