"""What several test modules need: small data, tiny runs, results, servers, and inputs that are meant to be strange."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# So that their assertions say what differs, as those of the test modules do.
pytest.register_assert_rewrite("builders.forked", "builders.hostile", "builders.views")
