"""Exact, streaming metrics; see `rtrain.metrics.state` for how they sum."""

from rtrain.metrics.classification import (
    F1,
    MAE,
    MSE,
    RMSE,
    Accuracy,
    Calibration,
    LogLoss,
    NormalizedEntropy,
    Precision,
    Recall,
)
from rtrain.metrics.curves import AUC, AUPRC, KS
from rtrain.metrics.ranking import GAUC, MAP, MRR, NDCG, FAt, HitRate, PrecisionAt, RecallAt, RPrecision

GroupMetric = GAUC | NDCG | PrecisionAt | RecallAt | FAt | HitRate | MRR | MAP | RPrecision
"""Metrics of the order of the rows within each group."""
ScoredMetric = (
    AUC | AUPRC | KS
    | LogLoss | NormalizedEntropy | Calibration | MSE | RMSE | MAE
    | Accuracy | Precision | Recall | F1
    | GroupMetric
)  # fmt: skip
"""Metrics of rows with a logit, a label and a group."""

__all__ = [
    "AUC",
    "AUPRC",
    "F1",
    "GAUC",
    "KS",
    "MAE",
    "MAP",
    "MRR",
    "MSE",
    "NDCG",
    "RMSE",
    "Accuracy",
    "Calibration",
    "FAt",
    "GroupMetric",
    "HitRate",
    "LogLoss",
    "NormalizedEntropy",
    "Precision",
    "PrecisionAt",
    "RPrecision",
    "Recall",
    "RecallAt",
    "ScoredMetric",
]
