"""What failures leave of a run's time: by closed form, and by simulation of weeks on thousands of devices."""

from rtrain.goodput.scenario import Scenario
from rtrain.goodput.study import Study, study

__all__ = ["Scenario", "Study", "study"]
