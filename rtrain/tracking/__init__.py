"""Where curves are sent besides the run's own folder: one small protocol, four takers."""

from rtrain.tracking.opening import open_trackers
from rtrain.tracking.protocol import Tracker, Tracking
from rtrain.tracking.secrets import mask, mask_command
from rtrain.tracking.sync import Synced, sync
from rtrain.uris import has_secret, mask_text

__all__ = ["Synced", "Tracker", "Tracking", "has_secret", "mask", "mask_command", "mask_text", "open_trackers", "sync"]
