"""Lets these tests share what they check: `storm`, and the checks that the sabotage tests run again."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
