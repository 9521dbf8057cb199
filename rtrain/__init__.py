"""rtrain: distributed training on Ray for search, recommendation and language models.

Names are loaded when they are first used: `rtrain doctor` must work where torch does not.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtrain.version import VERSION as __version__

if TYPE_CHECKING:
    from rtrain.api import Result, plan, serve, train
    from rtrain.cli import main
    from rtrain.config import diff, override
    from rtrain.data.holdout import LeaveOneOut, Random, RandomPerUser
    from rtrain.data.interactions import Interactions
    from rtrain.data.negatives import Negatives
    from rtrain.data.protocol import Data
    from rtrain.data.retrieval import Graph, Histories, Pairs
    from rtrain.data.side import Bins, SideFeatures
    from rtrain.data.split import ByTime
    from rtrain.data.tokens import Tokens
    from rtrain.data.vocabularies import vocabulary_of
    from rtrain.data.words import Words
    from rtrain.duration import Duration
    from rtrain.encodings import Log1p, PiecewiseLinear, Quantiles
    from rtrain.endpoint.canary import Canary, Limits
    from rtrain.endpoint.endpoint import Endpoint
    from rtrain.endpoint.online import Online
    from rtrain.export.column import predict_column
    from rtrain.export.encoders import Encoders
    from rtrain.language.decoding import Decoding
    from rtrain.language.guard import Guard
    from rtrain.managed import Managed
    from rtrain.mesh import Parallel, TableLayout
    from rtrain.metrics import (
        AUC,
        AUPRC,
        F1,
        GAUC,
        KS,
        MAE,
        MAP,
        MRR,
        MSE,
        NDCG,
        RMSE,
        Accuracy,
        Calibration,
        FAt,
        HitRate,
        LogLoss,
        NormalizedEntropy,
        Precision,
        PrecisionAt,
        Recall,
        RecallAt,
        RPrecision,
    )
    from rtrain.metrics.beyond import Coverage, Diversity, Novelty, PopularityBias, Serendipity
    from rtrain.metrics.language import Perplexity, TokenLoss
    from rtrain.metrics.state import Metric
    from rtrain.metrics.text import BLEU, ROUGE, TextPairs
    from rtrain.models.dcnv2 import DCNv2
    from rtrain.models.decoder import Decoder
    from rtrain.models.deepfm import DeepFM
    from rtrain.models.din import DIN
    from rtrain.models.dlrm import DLRM
    from rtrain.models.ensemble import Ensemble
    from rtrain.models.hstu import HSTU
    from rtrain.models.hstu_ranker import HSTURanker
    from rtrain.models.light_gcn import LightGCN
    from rtrain.models.mf import MF
    from rtrain.models.mmoe import MMoE
    from rtrain.models.plan import Piece
    from rtrain.models.ple import PLE
    from rtrain.models.protocol import Blueprint, Model, Objective
    from rtrain.models.ranking import RankingConfig
    from rtrain.models.retrieval import RetrievalConfig
    from rtrain.models.sasrec import SASRec
    from rtrain.models.text_tower import TextTower
    from rtrain.models.two_tower import TwoTower
    from rtrain.moment import Age, Moment
    from rtrain.nn.tables import VECTORS, Table, TableOptions, mask, sequence
    from rtrain.objectives.bpr import BPR
    from rtrain.objectives.candidate_loss import CandidateLoss
    from rtrain.objectives.distilled import Distillation
    from rtrain.objectives.full_softmax import FullSoftmax
    from rtrain.objectives.in_batch_softmax import InBatchSoftmax
    from rtrain.objectives.pointwise import Pointwise
    from rtrain.objectives.sampled_binary import SampledBinary
    from rtrain.objectives.sampled_softmax import SampledSoftmax
    from rtrain.objectives.weighted import WeightedSum
    from rtrain.optim import SGD, Adagrad, Adam, AdamW, RowWiseAdagrad, Schedule
    from rtrain.release.gate import Gate
    from rtrain.release.judged import Decision, Judged
    from rtrain.release.quality import Calibrated, NotWorse, SlicesNotWorse
    from rtrain.release.registry import Registry
    from rtrain.release.servable import Faithful, SameRequests, Servable, Within
    from rtrain.release.together import Together
    from rtrain.run import Checkpoint, Cluster, Evaluation, Faults, Handoff, Run
    from rtrain.schema import Dense, Id, IdList, IdSequence, Label, Schema
    from rtrain.serving.scale import Scale
    from rtrain.stages.config import TwoStages
    from rtrain.stages.features import InMemory, NoFeatures, Redis, SQLite
    from rtrain.stages.filters import AtMost, Only, Without
    from rtrain.text import Text, TokenizerFile
    from rtrain.tracking import Tracking
    from rtrain.training.events import Callback
    from rtrain.tuning import Asha, Median, Population, Search, Tuned, choice, integers, loguniform, tune, uniform
    from rtrain.vector import Embedding
    from rtrain.vocabulary import Vocabulary

_HOMES = {
    "rtrain.api": ("Result", "plan", "serve", "train"),
    "rtrain.cli": ("main",),
    "rtrain.config": ("diff", "override"),
    "rtrain.data.holdout": ("LeaveOneOut", "Random", "RandomPerUser"),
    "rtrain.data.interactions": ("Interactions",),
    "rtrain.data.negatives": ("Negatives",),
    "rtrain.data.protocol": ("Data",),
    "rtrain.data.retrieval": ("Graph", "Histories", "Pairs"),
    "rtrain.data.side": ("Bins", "SideFeatures"),
    "rtrain.data.split": ("ByTime",),
    "rtrain.data.tokens": ("Tokens",),
    "rtrain.data.vocabularies": ("vocabulary_of",),
    "rtrain.data.words": ("Words",),
    "rtrain.duration": ("Duration",),
    "rtrain.export.column": ("predict_column",),
    "rtrain.export.encoders": ("Encoders",),
    "rtrain.encodings": ("Log1p", "PiecewiseLinear", "Quantiles"),
    "rtrain.language.decoding": ("Decoding",),
    "rtrain.language.guard": ("Guard",),
    "rtrain.mesh": ("Parallel", "TableLayout"),
    "rtrain.metrics": (
        "AUC",
        "AUPRC",
        "F1",
        "FAt",
        "GAUC",
        "HitRate",
        "KS",
        "MAE",
        "MAP",
        "MRR",
        "MSE",
        "NDCG",
        "RMSE",
        "Accuracy",
        "Calibration",
        "LogLoss",
        "NormalizedEntropy",
        "Precision",
        "PrecisionAt",
        "RPrecision",
        "Recall",
        "RecallAt",
    ),
    "rtrain.metrics.beyond": ("Coverage", "Diversity", "Novelty", "PopularityBias", "Serendipity"),
    "rtrain.metrics.language": ("Perplexity", "TokenLoss"),
    "rtrain.metrics.text": ("BLEU", "ROUGE", "TextPairs"),
    "rtrain.metrics.state": ("Metric",),
    "rtrain.models.dcnv2": ("DCNv2",),
    "rtrain.models.decoder": ("Decoder",),
    "rtrain.models.deepfm": ("DeepFM",),
    "rtrain.models.din": ("DIN",),
    "rtrain.models.dlrm": ("DLRM",),
    "rtrain.models.ensemble": ("Ensemble",),
    "rtrain.models.hstu": ("HSTU",),
    "rtrain.models.hstu_ranker": ("HSTURanker",),
    "rtrain.models.light_gcn": ("LightGCN",),
    "rtrain.models.mf": ("MF",),
    "rtrain.models.mmoe": ("MMoE",),
    "rtrain.models.plan": ("Piece",),
    "rtrain.models.ple": ("PLE",),
    "rtrain.models.protocol": ("Blueprint", "Model", "Objective"),
    "rtrain.models.ranking": ("RankingConfig",),
    "rtrain.models.retrieval": ("RetrievalConfig",),
    "rtrain.models.sasrec": ("SASRec",),
    "rtrain.models.text_tower": ("TextTower",),
    "rtrain.models.two_tower": ("TwoTower",),
    "rtrain.managed": ("Managed",),
    "rtrain.moment": ("Age", "Moment"),
    "rtrain.nn.tables": ("Table", "TableOptions", "VECTORS", "mask", "sequence"),
    "rtrain.objectives.bpr": ("BPR",),
    "rtrain.objectives.candidate_loss": ("CandidateLoss",),
    "rtrain.objectives.distilled": ("Distillation",),
    "rtrain.objectives.full_softmax": ("FullSoftmax",),
    "rtrain.objectives.in_batch_softmax": ("InBatchSoftmax",),
    "rtrain.objectives.pointwise": ("Pointwise",),
    "rtrain.objectives.sampled_binary": ("SampledBinary",),
    "rtrain.objectives.sampled_softmax": ("SampledSoftmax",),
    "rtrain.objectives.weighted": ("WeightedSum",),
    "rtrain.optim": ("SGD", "Adagrad", "Adam", "AdamW", "RowWiseAdagrad", "Schedule"),
    "rtrain.endpoint.canary": ("Canary", "Limits"),
    "rtrain.endpoint.endpoint": ("Endpoint",),
    "rtrain.endpoint.online": ("Online",),
    "rtrain.release.gate": ("Gate",),
    "rtrain.release.judged": ("Decision", "Judged"),
    "rtrain.release.quality": ("Calibrated", "NotWorse", "SlicesNotWorse"),
    "rtrain.release.registry": ("Registry",),
    "rtrain.release.servable": ("Faithful", "SameRequests", "Servable", "Within"),
    "rtrain.release.together": ("Together",),
    "rtrain.run": ("Checkpoint", "Cluster", "Evaluation", "Faults", "Handoff", "Run"),
    "rtrain.schema": ("Dense", "Id", "IdList", "Label", "Schema", "IdSequence"),
    "rtrain.serving.scale": ("Scale",),
    "rtrain.stages.config": ("TwoStages",),
    "rtrain.stages.features": ("InMemory", "NoFeatures", "Redis", "SQLite"),
    "rtrain.stages.filters": ("AtMost", "Only", "Without"),
    "rtrain.text": ("Text", "TokenizerFile"),
    "rtrain.tracking": ("Tracking",),
    "rtrain.training.events": ("Callback",),
    "rtrain.vector": ("Embedding",),
    "rtrain.vocabulary": ("Vocabulary",),
    "rtrain.tuning": (
        "Asha",
        "Median",
        "Population",
        "Search",
        "Tuned",
        "choice",
        "integers",
        "loguniform",
        "tune",
        "uniform",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AUC", "AUPRC", "BLEU", "BPR", "DIN", "DLRM", "F1", "GAUC", "HSTU", "KS", "MAE", "MAP", "MF", "MRR", "MSE", "NDCG",
    "PLE", "RMSE", "ROUGE", "SGD", "VECTORS", "Accuracy", "Adagrad", "Adam", "AdamW", "Age", "Asha", "AtMost", "Bins",
    "Blueprint", "ByTime", "Calibrated", "Calibration", "Callback", "Canary", "CandidateLoss", "Checkpoint", "Cluster",
    "Coverage", "DCNv2", "Data", "Decision", "Decoder", "Decoding", "DeepFM", "Dense", "Distillation", "Diversity",
    "Duration", "Embedding", "Encoders", "Endpoint", "Ensemble", "Evaluation", "FAt", "Faithful", "Faults",
    "FullSoftmax", "Gate", "Graph", "Guard", "HSTURanker",
    "Handoff", "Histories", "HitRate", "Id", "IdList", "IdSequence", "InBatchSoftmax",
    "InMemory", "Interactions", "Judged", "Label", "LeaveOneOut", "LightGCN", "Limits", "Log1p", "LogLoss", "MMoE",
    "Managed", "Median", "Metric", "Model", "Moment", "Negatives", "NoFeatures", "NormalizedEntropy", "NotWorse",
    "Novelty", "Objective", "Online", "Only", "Pairs", "Parallel", "Perplexity", "Piece", "PiecewiseLinear",
    "Pointwise", "PopularityBias", "Population", "Precision", "PrecisionAt", "Quantiles", "RPrecision", "Random",
    "RandomPerUser", "RankingConfig", "Recall", "RecallAt", "Redis", "Registry", "Result", "RetrievalConfig",
    "RowWiseAdagrad", "Run", "SASRec", "SQLite", "SameRequests", "SampledBinary", "SampledSoftmax", "Scale", "Schedule",
    "Schema", "Search", "Serendipity", "Servable", "SideFeatures", "SlicesNotWorse", "Table", "TableLayout",
    "TableOptions", "Text", "TextPairs", "TextTower", "Together", "TokenLoss", "TokenizerFile", "Tokens", "Tracking",
    "Tuned", "TwoStages", "TwoTower", "Vocabulary", "WeightedSum", "Within", "Without", "Words", "__version__",
    "choice", "diff", "integers", "loguniform", "main", "mask", "override", "plan", "predict_column", "sequence",
    "serve", "train", "tune", "uniform", "vocabulary_of",
]  # fmt: skip


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What a recipe raises before it calls `main` is told as `main` tells it; all else as it was."""
    if kind.__module__ == "rtrain.errors":
        import_module("rtrain.cli.answer").uncaught(kind, error, trace)
    else:
        _HOOK(kind, error, trace)


_HOOK, sys.excepthook = sys.excepthook, _uncaught


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rtrain' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
