"""What all tests share: how hard hypothesis tries, the examples that it takes, and threads that do not compete.

Property tests take random examples, new ones in each run. Two environment variables change that:

- ``CI``: the same examples every time, so that a failure there is a failure here.
- ``SALTLM_SEED=N``: random examples from this seed, with or without ``CI``; it repeats a run that printed its seed.
"""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, settings
from pairs import pair, untied
from planted import bilingual, untied_parts

SEED = os.environ.get("SALTLM_SEED")
# Examples take milliseconds but share a machine: a deadline would fail tests that are correct.
_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# The same examples every time only where no seed asks for others.
_FIXED = {"derandomize": bool(os.environ.get("CI")) and not SEED}
settings.register_profile("quick", max_examples=10, **_SHARED, **_FIXED)
settings.register_profile("fast", max_examples=25, **_SHARED, **_FIXED)
settings.register_profile("slow", max_examples=500, **_SHARED, **_FIXED)
settings.load_profile(os.environ.get("SALTLM_HYPOTHESIS") or "fast")

# Test processes side by side (pytest-xdist) divide the processors among them; their own subprocesses inherit the share.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, 2 // _WORKERS))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

__all__ = ["bilingual", "pair", "untied", "untied_parts"]  # fixtures that several files use


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads the option
def pytest_configure(config: pytest.Config) -> None:
    if SEED and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = SEED


def pytest_report_header() -> str:
    profile, fixed = settings.get_current_profile_name(), settings.default.derandomize
    return f"property tests: profile {profile}, " + (
        "the same examples every time" if fixed else f"seed {SEED or 'random'}"
    )


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test that hypothesis draws examples for the marker ``property``."""
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            item.add_marker(pytest.mark.property)
