"""Goodput and the best checkpoint interval by formula.

J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974. J. T. Daly, A higher
order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3), 2006: of the wall time T for work S,
T = M e^(R/M) (e^((t + C)/M) - 1) S / t, with M the run's mean time between interruptions, R the restart, C the
checkpoint and t the training between two of them. Both hold where interruptions come at a constant rate.
"""

import math

from rtrain.goodput.scenario import Scenario


def interruption_s(scenario: Scenario) -> float:
    """Mean seconds between two interruptions of all of the run's nodes; `inf`: none comes."""
    rate = scenario.nodes * scenario.interruptions_per_s
    return 1 / rate if rate else math.inf


def losing_s(scenario: Scenario) -> float:
    """As `interruption_s`, of those alone that lose work: not of a preemption whose notice is enough to save it."""
    saved = scenario.preemptions_per_s if scenario.saves_on_notice else 0.0
    rate = scenario.nodes * (scenario.interruptions_per_s - saved)
    return 1 / rate if rate > 0 else math.inf


def young_s(scenario: Scenario) -> float:
    """Young's interval, sqrt(2 C M): seconds of training between two checkpoints; `inf` where no work is lost."""
    return math.sqrt(2 * scenario.checkpoint_s * losing_s(scenario))


def daly_s(scenario: Scenario) -> float:
    """Daly's interval (his equation 37), in seconds of training; `inf` where no work is lost."""
    mean, stall = losing_s(scenario), scenario.checkpoint_s
    if math.isinf(mean) or stall >= 2 * mean:
        return mean
    ratio = stall / (2 * mean)
    return math.sqrt(2 * stall * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def goodput(scenario: Scenario, every_s: float) -> float:
    """Useful share of the wall time in the long run, of a run that has all of its nodes or waits for them.

    Daly's T for three cases more, each exact by the renewal theorem unless said otherwise:

    - A checkpoint is committed `write_s` after its stall: a further factor e^(-W/M).
    - A fixed run without spares waits for a lost node, and for those that are lost meanwhile: the busy period of a
      queue M/D/inf, so that R becomes R + D (very nearly: fewer nodes fail while some are away; and D is the mean of
      failures and preemptions). With spares, or elastic, D is 0: as if a node were always at hand.
    - A preemption with enough notice costs one more checkpoint instead of work (nothing else comes meanwhile).

    `every_s`: seconds of training between two checkpoints.
    """
    mean, stall, write = interruption_s(scenario), scenario.checkpoint_s, scenario.write_s
    period = every_s + stall
    if math.isinf(mean):
        return every_s / period
    preempted = scenario.preemptions_per_s / scenario.interruptions_per_s
    saved = preempted if scenario.saves_on_notice else 0.0
    waits = not scenario.elastic and not scenario.spares
    away = (1 - preempted) * scenario.repair_s + preempted * scenario.return_s if waits else 0.0
    recovery = (scenario.restart_s + away) / mean
    if recovery + period / mean + write / mean > 500:  # e^500: nothing is ever finished, and floats end near
        return 0.0
    committed = every_s * math.exp(-write / mean) / math.expm1(period / mean)
    trained = mean * math.expm1(-every_s / mean) / math.expm1(-period / mean)
    cycle = mean * math.exp(recovery) + saved * (stall + write)
    return ((1 - saved) * committed + saved * trained) / cycle
