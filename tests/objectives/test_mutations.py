"""The tests of the objectives catch every known mistake."""

import pytest

from tests.objectives import mutations


@pytest.mark.slow
def test_no_known_mistake_survives(capsys):
    survived = mutations.main([])
    assert not survived, capsys.readouterr().out
