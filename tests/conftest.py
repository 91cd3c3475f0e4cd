"""Profiles of hypothesis: `quick` by default, `thorough` by HYPOTHESIS_PROFILE or `--hypothesis-profile`.

The quick one draws the same examples in every run, the thorough one others each time.
"""

import contextlib
import os

from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "quick", max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET
)
settings.register_profile("thorough", max_examples=200, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Now and then hypothesis draws a constant that it finds in the source of what is imported. That differs between the
# processes of a run, and changes with any change of the source, so derandomized examples would differ too.
with contextlib.suppress(ImportError, AttributeError):  # versions that do not look for constants
    from hypothesis.internal.conjecture import providers

    found_in_source = providers._get_local_constants
    providers._get_local_constants = lambda: (
        providers.Constants() if settings.default.derandomize else found_in_source()
    )
