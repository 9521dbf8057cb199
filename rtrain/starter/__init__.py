"""`rtrain init`: a first recipe, written from a data file's own columns."""

from rtrain.starter.making import Started, start

__all__ = ["Started", "start"]
