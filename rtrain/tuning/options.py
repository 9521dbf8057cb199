"""How a search goes about it: what proposes, what stops trials early, and what it may cost."""

from dataclasses import dataclass
from typing import Literal

from rtrain.errors import ConfigError

Sampler = Literal["tpe", "gp", "random", "grid"]
COST = "cost"
"""The objective: what a trial's workers cost, at `Search.price`."""


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (Li et al., https://arxiv.org/abs/1810.05934), Ray Tune's.

    At `grace` steps, and again at `factor` times as many, a trial that is not among the best 1/`factor` of those that
    got there ends.
    """

    grace: int | None = None
    """Steps that every trial gets; none: those of its first evaluation."""
    factor: float = 3.0
    """How many reach a rung for one that goes on."""

    def __post_init__(self) -> None:
        _at_least("search.scheduler.grace", self.grace, 1)
        if not self.factor > 1:
            raise ConfigError(f"search.scheduler.factor: must be above 1, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median stopping rule (Golovin et al., Vizier, KDD 2017), Ray Tune's.

    A trial ends whose best value is worse than the median of the others' running means at the same step.
    """

    grace: int | None = None
    """Steps that every trial gets; none: those of its first evaluation."""
    least: int = 3
    """Other trials that have come as far, below which nothing is stopped."""

    def __post_init__(self) -> None:
        _at_least("search.scheduler.grace", self.grace, 1)
        _at_least("search.scheduler.least", self.least, 1)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Population-based training (Jaderberg et al., https://arxiv.org/abs/1711.09846), Ray Tune's synchronous one.

    All trials are the population. Every `every` steps they wait for each other; the worst take the checkpoint of one
    of the best, change its values by a little, and go on from there.
    """

    every: int
    """Optimizer steps between; evaluations have to fall on them."""
    share: float = 0.25
    """Share of the population that is replaced by as many."""
    anew: float = 0.25
    """Probability that a value is drawn anew instead of changed by a fifth."""

    def __post_init__(self) -> None:
        _at_least("search.scheduler.every", self.every, 1)
        if not 0 < self.share <= 0.5:
            raise ConfigError(f"search.scheduler.share: must be above 0 and at most 0.5, got {self.share}")
        if not 0 <= self.anew <= 1:
            raise ConfigError(f"search.scheduler.anew: must be from 0 to 1, got {self.anew}")


Scheduler = Asha | Median | Population


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a search goes about it."""

    trials: int = 8
    """At most so many; of a grid all combinations, where those are fewer."""
    sampler: Sampler = "tpe"
    """What proposes values: Optuna's tree of Parzen estimators, its Gaussian process, chance, or each combination."""
    scheduler: Scheduler | None = None
    """What ends trials early, or has them learn from each other; none: each is trained to its end."""
    objectives: tuple[str, ...] = ()
    """Metrics to weigh against each other, and beside them `parameters`, `seconds`, `cost` (at `price`) and
    `latency_ms` (of the exported model's answer); none: `evaluation.monitor` alone."""
    concurrent: int | None = None
    """Trials at the same time; none: as many as the cluster holds, and one on a Ray that is started for it."""
    hours: float | None = None
    """Of the search, over all its starts, after which no further interval between two evaluations begins."""
    cost: float | None = None
    """In the currency of `price`, as `hours`."""
    price: float | None = None
    """Of one worker for an hour."""

    def __post_init__(self) -> None:
        _at_least("search.trials", self.trials, 1)
        _at_least("search.concurrent", self.concurrent, 1)
        for name in ("hours", "cost", "price"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"search.{name}: must be above 0, or none, got {value}")
        if self.cost is not None and self.price is None:
            raise ConfigError(f"search.cost: {self.cost:g} needs a price. Set search.price, of a worker for an hour")
        if self.price is not None and self.cost is None and COST not in self.objectives:
            raise ConfigError(
                f"search.price: {self.price:g} limits nothing without search.cost, and is not weighed: {COST} is not "
                "among search.objectives"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ConfigError(f"search.objectives: one is there twice: {', '.join(self.objectives)}")
        self._check_scheduler()

    def _check_scheduler(self) -> None:
        if isinstance(self.scheduler, Population):
            if self.trials < 2:
                raise ConfigError(f"search.trials: a population has at least 2, got {self.trials}")
            if self.sampler in ("tpe", "gp"):
                raise ConfigError(
                    f"search.sampler: {self.sampler} learns from trials that have ended, but a population begins "
                    "all at once. Take random, or grid"
                )
        if self.scheduler is not None and len(self.objectives) > 1:
            raise ConfigError(
                f"search.scheduler: {type(self.scheduler).__name__} orders trials by one value, but there are "
                f"{len(self.objectives)} objectives. Leave the scheduler out, or all objectives but one"
            )


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name}: must be at least {least}, got {value}")
