"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Random examples are the same in every run, and a slow machine is no failure.
settings.register_profile("neds", deadline=None, derandomize=True)
settings.load_profile("neds")


@pytest.fixture(scope="session")
def recordings():
    """Folder of real recordings: NEDS_RECORDINGS, or ../shared/data beside the checkout."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("NEDS_RECORDINGS", beside))
    if not folder.is_dir():
        pytest.skip(f"no real recordings: {folder} is not there (set NEDS_RECORDINGS)")
    return folder
