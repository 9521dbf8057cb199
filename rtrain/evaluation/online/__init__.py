"""Online metrics of an event log: what people did with what they were shown, with how sure each rate is."""

from rtrain.evaluation.online.assigned import Assigned, Window
from rtrain.evaluation.online.log import Columns, Events
from rtrain.evaluation.online.measure import measure_online

__all__ = ["Assigned", "Columns", "Events", "Window", "measure_online"]
