"""Deadlines of tests: they only catch hangs and never measure speed, because a busy machine can be ten times slower."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

HANG: Final = 60.0
"""Seconds after which a call that should end by itself counts as hanging."""

ANSWER: Final = timedelta(seconds=HANG / 2)
"""How long a server that works may take for one answer; a server's own default measures its speed."""

ADOPTION: Final = timedelta(seconds=2 * HANG)
"""How long servers that work may take to adopt a change, or to come to hold the same."""
