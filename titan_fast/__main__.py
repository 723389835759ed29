"""``python -m titan_fast`` is ``titan-fast``."""

from titan_fast.cli import main

main()
