"""How often which word begins a line in a folder of texts, by calls that are submitted one by one.

    titan-fast up                    # in one terminal
    python words.py [FOLDER]         # in another

The executor is one of `concurrent.futures`: what works with a pool of processes works with a cluster.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import as_completed
from pathlib import Path

from titan_fast import Client, TaskFailed


def first_words(text: str, *, longest: int) -> Counter[str]:
    """Of the lines of a text; those that are no longer than so many letters."""
    words = (line.split()[0].strip(".,:;!?\"'").lower() for line in text.splitlines() if line.strip())
    return Counter(word for word in words if 0 < len(word) <= longest)


def main(folder: Path) -> None:
    found: Counter[str] = Counter()
    with Client() as client, client.executor("words", retries=1) as pool:
        texts = {
            pool.submit(first_words, path.read_text("utf-8"), longest=12): path.name
            for path in sorted(folder.rglob("*.md"))
        }
        for future in as_completed(texts):
            try:
                found += future.result()
            except TaskFailed as error:
                raise SystemExit(f"{texts[future]}: {error}") from None
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    print(f"{len(texts)} texts, {found.total()} lines; most begin with {most[0][0]!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
