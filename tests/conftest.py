"""Profiles of hypothesis: `quick` by default, `thorough` by HYPOTHESIS_PROFILE or `--hypothesis-profile`."""

import os

from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "quick", max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET
)
settings.register_profile("thorough", max_examples=200, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
