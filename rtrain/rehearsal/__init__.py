"""Failures brought about in runs of their own, each beside an undisturbed twin."""
