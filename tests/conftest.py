"""The environment that every test runs in."""

import os

# Before torch or Ray is imported by a test: one thread a process, and no limits meant for big shared machines.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(name, value)
