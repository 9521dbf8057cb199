"""From the best checkpoint to what answers requests: export, the serving check, result and report."""
