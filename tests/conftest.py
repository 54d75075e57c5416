"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run, and no time limit on one: machines that run tests are busy.
settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")
