"""A column of texts says what a list of them would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from titan_fast.scheduler.columns import Texts

WORDS = st.text(st.sampled_from("abä☃/"), min_size=1, max_size=4)


@given(st.lists(WORDS), WORDS)
def test_it_is_a_list_of_texts(texts: list[str], wanted: str) -> None:
    column = Texts(texts)
    assert list(column) == texts
    assert len(column) == len(texts)
    assert [column[row] for row in range(len(texts))] == texts
    assert column.find(wanted) == (texts.index(wanted) if wanted in texts else None)
    column.append(wanted)
    assert list(column) == [*texts, wanted]
    assert column.find(wanted) == [*texts, wanted].index(wanted)


def test_a_text_across_two_rows_is_none_of_them() -> None:
    column = Texts(["ab", "cd", "bc"])
    assert column.find("bc") == 2
    assert column.find("abcd") is None
