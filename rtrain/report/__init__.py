"""report.html: what a run did, on one page that needs nothing else."""

from rtrain.report.page import curve, write_report

__all__ = ["curve", "write_report"]
