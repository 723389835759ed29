"""Names, capabilities, and guessing what was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_fast.ids import TaskId, parse_task_id
from titan_fast.model.names import (
    Guesses,
    check_capability,
    check_graph_name,
    check_name,
    check_worker_name,
    closest,
    normal_capabilities,
    to_task_name,
)


@pytest.mark.parametrize(
    "name", ["extract", "step-1.init", "Überprüfung", "データ", "with a space", "x" * 200, "last", "12"]
)
def test_an_ordinary_name_is_allowed(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the name is empty"),
        ("a/b", "the name 'a/b' contains '/' (names are addressed as 12/name and 12/name[3])"),
        ("a[3]", "the name 'a[3]' contains '[' (names are addressed as 12/name and 12/name[3])"),
        ("a]", "the name 'a]' contains ']' (names are addressed as 12/name and 12/name[3])"),
        ("a\nb", "the name 'a\\nb' contains the control character U+000A"),
        ("a\x7f", "the name 'a\\x7f' contains the control character U+007F"),
        ("a\x85b", "the name 'a\\x85b' contains the control character U+0085"),
        ("a\u2028b", "the name 'a\\u2028b' contains the control character U+2028"),
        ("a\ud800", "the name 'a\\ud800' contains the control character U+D800"),
        (" a", "the name ' a' starts or ends with a space"),
        ("a ", "the name 'a ' starts or ends with a space"),
        ("x" * 201, "the name 'xxxxxxxxxxxxxxxxxxxx…' has 201 characters, at most 200 are allowed"),
    ],
)
def test_a_name_that_could_not_be_addressed_is_refused(name, message):
    with pytest.raises(ValueError) as refused:
        check_name(name)
    assert str(refused.value) == message


def test_a_graph_may_be_called_by_a_path():
    assert check_graph_name("etl/nightly [eu]") == "etl/nightly [eu]"


@given(st.text(max_size=210))
def test_every_allowed_name_can_be_addressed(name):
    try:
        check_name(name)
    except ValueError:
        return
    assert parse_task_id(f"12/{name}[3]") == TaskId(12, name, 3)


@given(st.text(max_size=300))
def test_every_text_has_a_legal_name(text):
    check_name(to_task_name(text))


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (None, ()),
        ("GPU", ("GPU",)),
        ("GENERAL", ()),
        ("general", ()),
        ("", ()),
        ("GPU, HIGH_MEM", ("GPU", "HIGH_MEM")),
        (["GPU", None, "GENERAL", "GPU", "A"], ("GPU", "A")),
    ],
)
def test_capabilities_are_a_set_in_their_order_and_general_is_none(value, tags):
    assert normal_capabilities(value) == tags


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("", "a capability is empty"),
        ("A B", "the capability 'A B' contains ' '"),
        ("A,B", "the capability 'A,B' contains ','"),
        ("A\0", "the capability 'A\\x00' contains '\\x00'"),
        ("x" * 201, "the capability 'xxxxxxxxxxxxxxxxxxxx…' has 201 characters, at most 200 are allowed"),
    ],
)
def test_a_tag_no_worker_could_have_is_refused(tag, message):
    with pytest.raises(ValueError) as refused:
        check_capability(tag)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("word", "meant"),
    [("prep", "prepare"), ("need", "needs"), ("Depends-On", "depends_on"), ("NEEDS", "needs"), ("zebra", None)],
)
def test_a_typing_error_is_guessed(word, meant):
    assert closest(word, ["prepare", "needs", "depends_on"]) == meant


def test_guessing_ends_when_it_has_cost_enough():
    guesses = Guesses(budget=4)
    assert guesses.hint("need", ["needs", "name"]) == " (did you mean 'needs'?)"
    assert guesses.hint("need", ["needs", "name"], pattern="${{}}") == " (did you mean '${needs}'?)"
    assert guesses.hint("need", ["needs", "name"]) == ""


def test_a_task_is_not_told_that_it_meant_itself():
    assert Guesses().hint("trian", ["train", "zebra"], but="train") == ""


@pytest.mark.parametrize("name", ["w1", "host-2", "build host", "Rechner"])
def test_a_worker_has_a_name_that_fits_one_line_and_a_folder(name):
    assert check_worker_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "a\u200bb", " a", "x" * 201])
def test_a_worker_has_no_name_that_does_not(name):
    with pytest.raises(ValueError, match=r"name|folder|print"):
        check_worker_name(name)
