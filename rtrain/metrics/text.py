"""Metrics of generated text beside what people wrote: by sacrebleu and torchmetrics, as sums over pairs.

A pair is a prediction and its references, of which one is enough.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from rtrain.errors import ConfigError
from rtrain.metrics.state import Metric, Partial

Overlap = Literal["1", "2", "L"]
ORDERS = 4
"""BLEU's longest n-gram."""


@dataclass(frozen=True)
class TextPairs:
    """Predictions with their references.

    Raises:
        ValueError: not as many lists of references as predictions, or a list that is empty.
    """

    measured_by: ClassVar[str] = "BLEU and ROUGE"

    predictions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    """Of each prediction."""

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.references) or not all(self.references):
            raise ValueError("each prediction needs at least one reference")


@dataclass(frozen=True, kw_only=True)
class BLEU(Metric):
    """Precision of n-grams up to 4 with a brevity penalty, 0 to 100, of the whole corpus (Papineni et al., ACL 2002).

    Sacrebleu's signature `nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp` (Post, arXiv:1804.08771).
    """

    name: ClassVar[str] = "bleu"
    higher_is_better: ClassVar[bool] = True

    def partial(self, scored: TextPairs) -> Partial:
        """Matches and n-grams of each order, and both sides' lengths."""
        if not scored.predictions:
            return _sums(matches=np.zeros(ORDERS), grams=np.zeros(ORDERS), predicted=0, wanted=0)
        most = max(len(of) for of in scored.references)
        streams = [[of[i] if i < len(of) else None for of in scored.references] for i in range(most)]
        found = _sacrebleu().corpus_score(list(scored.predictions), streams)
        return _sums(matches=found.counts, grams=found.totals, predicted=found.sys_len, wanted=found.ref_len)

    def value(self, partial: Partial) -> float:
        """Of all pairs; nan of none."""
        sums = partial.sums
        if not sums["wanted"] and not sums["predicted"]:
            return float("nan")
        bleu = _sacrebleu()
        counts, totals = ([int(n) for n in sums[name]] for name in ("matches", "grams"))
        lengths = (int(sums[name]) for name in ("predicted", "wanted"))
        return float(bleu.compute_bleu(counts, totals, *lengths, smooth_method=bleu.smooth_method).score)


@dataclass(frozen=True, kw_only=True)
class ROUGE(Metric):
    """F measure of what prediction and reference share, 0 to 1, mean over pairs (Lin, ACL 2004 workshop).

    Words in lower case, of letters and digits, without a stemmer. Of several references the nearest counts.
    """

    higher_is_better: ClassVar[bool] = True
    of: Overlap = "L"
    """Shared words, pairs of words, or the longest common subsequence of words."""

    def __post_init__(self) -> None:
        if self.of not in get_args(Overlap):
            raise ConfigError(f"ROUGE.of: must be '1', '2' or 'L', got {self.of!r}")

    @property
    def name(self) -> str:
        """Such as `rouge_l`."""
        return f"rouge_{self.of.lower()}"

    def partial(self, scored: TextPairs) -> Partial:
        """Sum and count."""
        from torchmetrics.functional.text.rouge import rouge_score  # seconds to import

        if not scored.predictions:
            return _sums(f=0, pairs=0)
        key = f"rouge{self.of}"
        references = [list(of) for of in scored.references]
        found = rouge_score(list(scored.predictions), references, accumulate="best", rouge_keys=key)
        return _sums(f=float(found[f"{key}_fmeasure"]) * len(references), pairs=len(references))

    def value(self, partial: Partial) -> float:
        """The mean; nan of no pair."""
        pairs = float(partial.sums["pairs"])
        return float(partial.sums["f"]) / pairs if pairs else float("nan")


def _sums(**values: object) -> Partial:
    return Partial(sums={name: np.array(value, dtype=np.float64) for name, value in values.items()})


def _sacrebleu() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU as Sacrebleu
    except ImportError:
        raise ConfigError("BLEU needs sacrebleu: pip install 'rtrain[text]'") from None
    return Sacrebleu()
