from rtrain.data.prepare.aggregates import Aggregate, Count, Mean, Recency, Session, Trend
from rtrain.data.prepare.config import Prepare
from rtrain.data.prepare.prepared import Prepared
from rtrain.data.prepare.spelling import parse

__all__ = ["Aggregate", "Count", "Mean", "Prepare", "Prepared", "Recency", "Session", "Trend", "parse"]
