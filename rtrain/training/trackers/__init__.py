"""Where curves are sent besides the run's own folder: one small protocol, four takers."""

from rtrain.training.trackers.opening import open_trackers
from rtrain.training.trackers.protocol import Tracker, Tracking
from rtrain.training.trackers.secrets import mask, mask_command
from rtrain.training.trackers.uris import has_secret, mask_text

__all__ = ["Tracker", "Tracking", "has_secret", "mask", "mask_command", "mask_text", "open_trackers"]
