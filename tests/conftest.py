"""Shared by all tests: one thread, so that parallel runs do not fight over cores; the longest come first."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# Nothing but a fault fails a test: neither how busy the cores are, nor what was drawn this time.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

LONGEST = ("window_parallel", "runs_killed", "/export/", "experiment", "tracking")


def pytest_collection_modifyitems(items):
    """Put the longest files first: what begins last should be short."""
    items.sort(key=lambda item: not any(word in item.nodeid for word in LONGEST))
