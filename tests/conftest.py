"""What all tests share: how hard hypothesis tries, and threads that do not compete."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings
from pairs import pair, untied
from planted import bilingual, untied_parts

# Examples take milliseconds but share a machine: a deadline would fail for no fault of ours.
_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=25, **_SHARED)
settings.register_profile("slow", max_examples=500, **_SHARED)
# In CI the same examples run every time, so that a failure there is a failure here.
settings.register_profile("ci", max_examples=25, derandomize=True, **_SHARED)
settings.load_profile(os.environ.get("SALTLM_HYPOTHESIS") or ("ci" if os.environ.get("CI") else "fast"))

torch.set_num_threads(2)

__all__ = ["bilingual", "pair", "untied", "untied_parts"]  # fixtures that several files use
