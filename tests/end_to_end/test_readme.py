"""What the README prints, as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.smoke
def test_the_first_graph_of_ones_own_runs(cli, tmp_path):
    (tmp_path / "first.yaml").write_text(re.search(r"first\.yaml <<'END'\n(.*?)END\n", README, re.S)[1])
    assert "good" in cli("lint", "first.yaml").stdout
    assert "COMPLETED: 5 tasks" in cli("run", "first.yaml", "--local").stdout


def test_every_verb_the_readme_names_is_there(cli):
    verbs = re.findall(r"`([a-z]+)`", README.partition("## The command line")[2].partition("Exit codes")[0])
    listed = cli("--help").stdout
    for verb in verbs:
        assert re.search(rf"^  {verb}\b", listed, re.M), verb


def test_every_page_the_readme_links_is_there():
    for target in re.findall(r"\]\(([^)#h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
