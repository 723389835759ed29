"""The generated pages are what the code says, and the check that says so can fail."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from titan_fast import config, errors
from titan_fast.protocol.messages import BY_OP
from titan_fast.protocol.opcodes import Op

SCRIPT = Path(__file__).parents[2] / "docs" / "generate.py"


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_fresh():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_page_is_found(generate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert generate.stale() == []
    page = tmp_path / "errors.md"
    page.write_text(page.read_text("utf-8").replace("`bad_proof`", "`good_proof`"), "utf-8")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().err.endswith("stale: errors.md; run python docs/generate.py\n")


def test_everything_is_on_its_page(generate):
    protocol = generate.protocol()
    for op in Op:
        assert f"`{int(op):#04x}`" in protocol
        assert f"### {op.name}\n" in protocol
    for cls in BY_OP.values():
        for field in cls.__struct_fields__:
            assert f"`{field}`" in protocol
    settings = generate.configuration()
    for section, cls in config.SECTIONS.items():
        assert all(f"`TITAN_{section}_{key}`".upper() in settings for key in cls.__struct_fields__)
    assert all(f"| `{code}` |" in generate.error_docs() for code in errors.all_errors())


def test_headings_and_links_agree(generate):
    page = generate.protocol()
    anchors = [line.lstrip("# ").lower().replace(" ", "-") for line in page.splitlines() if line.startswith("#")]
    assert len(set(anchors)) == len(anchors)
    links = {link.partition(")")[0] for link in page.split("](#")[1:]}
    assert links <= set(anchors)
