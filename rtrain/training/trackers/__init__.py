"""Where curves are sent besides the run's own folder: one small protocol, four takers."""

from rtrain.training.trackers.opening import open_trackers
from rtrain.training.trackers.protocol import Tracker, Tracking
from rtrain.training.trackers.secrets import mask, mask_command

__all__ = ["Tracker", "Tracking", "mask", "mask_command", "open_trackers"]
