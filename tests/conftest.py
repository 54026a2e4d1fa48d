"""Options and profiles for the whole suite."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says as much about the machine, which may pause, as about the test.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", **PATIENT)
settings.register_profile("long", max_examples=2000, **PATIENT)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the answers of the scenarios anew")
