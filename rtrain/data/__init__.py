"""Data: named sources, encoded rows, an exact global position, batches for each rank."""

from rtrain.data.cursor import Cursor
from rtrain.data.interactions import Dataset, Interactions
from rtrain.data.reader import Reader
from rtrain.data.split import ByTime

__all__ = ["ByTime", "Cursor", "Dataset", "Interactions", "Reader"]
