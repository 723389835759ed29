"""Lets these tests share what they are made of: cluster, crowd, graphs, weather, oracle, hour."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
