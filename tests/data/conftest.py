"""What several tests of the data road ask for."""

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
