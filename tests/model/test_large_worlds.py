"""The worlds that take seconds to a minute each. ``python -m tests.model`` prints the figures."""

from __future__ import annotations

import pytest

from tests.depth import STRIDE

from .configurations import CONFIGURATIONS, Configuration
from .explorer import explore
from .story import tell

pytestmark = pytest.mark.deep

LARGE = [one for one in CONFIGURATIONS if one.is_slow and not one.is_by_hand][::STRIDE]


@pytest.mark.parametrize("one", LARGE, ids=[one.name for one in LARGE])
def test_no_rule_is_broken_in_any_reachable_state(one: Configuration) -> None:
    found = explore(one.options, allowed=one.allowed)
    assert found.broken is None, tell(found)
    assert found.states > 1000
    assert found.steady > 0
