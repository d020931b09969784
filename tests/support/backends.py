"""The backends as a parameter of tests.

A test that takes the fixture `backend` of conftest runs once for each; where one is not installed,
its half is left out.
"""

import pytest

BACKENDS = [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("torch", "tf")]
