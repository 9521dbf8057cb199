"""Exact, streaming metrics; see `rtrain.metrics.state` for how they sum."""

from rtrain.metrics.classification import AUC, Accuracy, Calibration, LogLoss
from rtrain.metrics.ranking import GAUC, NDCG

__all__ = ["AUC", "GAUC", "NDCG", "Accuracy", "Calibration", "LogLoss"]
