"""ls and show refuse what makes no sense before anybody is asked, and list what was asked for."""

from __future__ import annotations

import pytest

from titan_fast.cli.look import STATES
from titan_fast.protocol import messages as msg
from titan_fast.scheduler.lifecycle import PUBLIC_STATES


@pytest.mark.parametrize("what", list(STATES))
def test_a_state_that_is_none_ends_with_2_and_the_states(cli, master, what):
    said = cli("ls", what, "--state", "nonsense", code=2).err
    assert ", ".join(STATES[what]) in said
    assert master.asked == []


def test_tasks_have_the_states_of_the_scheduler():
    assert set(STATES["tasks"]) == set(PUBLIC_STATES)


def test_ls_workers_lists_those_in_a_state(cli, master):
    rows = tuple(
        msg.WorkerRow(f"id-{state}", state.lower(), state, (), 1, 0, 0, "permanent", 1.0) for state in ("READY", "LOST")
    )
    master.on(msg.List, msg.Listed(workers=rows))
    assert [row["name"] for row in cli("ls", "workers", "--state", "lost", "--json").document] == ["lost"]
    assert len(cli("ls", "workers", "--json").document) == 2


def test_a_cursor_that_is_none_ends_with_2(cli, master):
    assert "'next' is no cursor" in cli("show", "1", "--cursor", "next", code=2).err
    assert master.asked == []


@pytest.fixture
def large_run(master):
    """A run of 2,500 tasks, on a master that gives at most 1,000 at a time."""
    names = [f"t{number}" for number in range(2500)]
    run = msg.RunRow(7, "large", "RUNNING", "", 1.0, 1.0, 0.0, {"PENDING": 2500, "RUNNING": 0})

    def page(cursor, limit):
        first = int(cursor or 0)
        end = min(first + limit, first + 1000, len(names))
        rows = tuple(
            msg.TaskRow(f"7/{name}", name, "PENDING", "", 0, 0, "", None, 0.0, 0.0, None) for name in names[first:end]
        )
        return rows, str(end) if end < len(names) else ""

    def show(asked):
        tasks, more = page(asked.cursor, asked.limit)
        return [msg.Shown(run, tasks, more)]

    def listed(asked):
        if asked.what == "specs":
            first = int(asked.cursor or 0)
            specs = tuple(msg.SpecRow(name, -1, {"PENDING": 1}) for name in names[first : first + 1000])
            return [msg.Listed(specs=specs, next=str(first + 1000) if first < 2000 else "")]
        behind = str(names.index(asked.task) + 1) if asked.task and not asked.cursor else asked.cursor
        tasks, more = page(behind, asked.limit)
        return [msg.Listed(tasks=tasks, next=more)]

    master.script(msg.Show, show)
    master.script(msg.List, listed)
    return names


@pytest.mark.parametrize("limit", [3, 1000, 1001, 2499, 2500, 1 << 40])
@pytest.mark.parametrize("verb", [("show", "7"), ("ls", "tasks", "--run", "7")])
def test_as_many_tasks_are_shown_as_were_asked_for(cli, large_run, verb, limit):
    document = cli(*verb, "-n", limit, "--json").document
    tasks = document["tasks"] if verb[0] == "show" else document
    assert [task["id"] for task in tasks] == [f"7/{name}" for name in large_run[:limit]]


def test_what_was_not_shown_begins_at_the_cursor(cli, large_run):
    document = cli("show", "7", "-n", "1200", "--json").document
    more = cli("show", "7", "--cursor", document["next"], "-n", "9999", "--json").document
    assert len(document["tasks"]) + len(more["tasks"]) == len(large_run)
    assert more["next"] is None


@pytest.mark.parametrize("size", [700, 1000, 2500])
def test_a_list_of_tasks_is_read_page_by_page_by_the_id_of_the_last_one(cli, large_run, size):
    seen, page = [], [None] * size
    while len(page) == size:
        after = ("--after", seen[-1]) if seen else ()
        page = cli("ls", "tasks", "--run", "7", "-n", size, *after, "--json").document
        seen += [task["id"] for task in page]
    assert seen == [f"7/{name}" for name in large_run]


def test_a_table_that_is_not_all_says_how_to_go_on(cli, large_run):
    assert "--after 7/t2\n" in cli("ls", "tasks", "--run", "7", "-n", "3").err


def test_a_list_of_runs_goes_on_behind_a_run(cli, master):
    master.on(msg.List, msg.Listed())
    assert cli("ls", "--after", "12", "--json").document == []
    assert master.asked[-1].cursor == "12"
    assert cli("ls", "--after", "12").text == "no more runs\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks", "--after", "12"], "--after 12 is no task"),
        (["tasks", "--after", "x/y/z"], "names no run or task"),
        (["tasks", "--run", "7", "--after", "12/t"], "--after 12/t is no task of run 7"),
        (["runs", "--after", "12/t"], "--after 12/t is no run's number"),
        (["runs", "--after", "last"], "--after last is no run's number"),
        (["workers", "--after", "w1"], "workers are listed whole"),
    ],
)
def test_an_id_to_go_on_behind_that_is_none_ends_with_2(cli, master, arguments, said):
    assert said in cli("ls", *arguments, code=2).err
    assert master.asked == []


def test_a_master_that_does_not_know_where_to_go_on_must_say_so(cli, large_run, master):
    cli("ls", "tasks", "--run", "7", "--after", "7/t3")
    assert set(master.asked[-1].critical) == {"task", "member"}, "it would begin at the first one, for ever"


# ---------------------------------------------------------------- the tree


def test_a_tree_has_what_does_not_fit_one_page(cli, large_run):
    assert cli("show", "7", "--tree", "-n", "2500").text.count("PENDING") >= 2500


@pytest.fixture
def branches(master):
    """a[20000] → b → d, a → c, d needs c too; e by itself."""
    run = msg.RunRow(7, "tree", "RUNNING", "", 1.0, 1.0, 0.0, {"PENDING": 20_004, "RUNNING": 0})
    specs = (
        msg.SpecRow("a", 20_000, {"COMPLETED": 19_999, "FAILED": 1}),
        msg.SpecRow("b", -1, {"PENDING": 1}, ("a",)),
        msg.SpecRow("c", 1, {"PENDING": 1}, ("a",)),
        msg.SpecRow("d", -1, {"PENDING": 1}, ("c", "b")),
        msg.SpecRow("e", -1, {"RUNNING": 1}),
    )
    first = msg.TaskRow("7/a[0]", "a[0]", "PENDING", "", 0, 0, "", None, 0.0, 0.0, None)
    master.on(msg.Show, msg.Shown(run, (first,), "1"))
    master.on(msg.List, msg.Listed(specs=specs))
    return [
        "a[20000] 19999 COMPLETED, 1 FAILED",
        "   └─ b PENDING",
        "      └─ d PENDING  (needs also c)",
        "   └─ c[1] PENDING",
        "e RUNNING",
    ]


def test_a_tree_counts_members_and_is_whole(cli, branches):
    done = cli("show", "7", "--tree")
    assert done.text.splitlines()[2:] == branches
    assert done.err == ""


def test_a_tree_of_a_task_is_what_is_below_it(cli, branches):
    assert cli("show", "7/b", "--tree").text.splitlines()[2:] == ["b PENDING", "   └─ d PENDING  (needs also c)"]


def test_a_tree_has_as_many_lines_as_were_asked_for(cli, branches):
    done = cli("show", "7", "--tree", "-n", "2")
    assert (done.text.splitlines()[2:], done.err) == (branches[:2], "… more: -n N\n")


def test_a_tree_has_no_cursor(cli, master):
    assert "a tree has no pages" in cli("show", "7", "--tree", "--cursor", "3", code=2).err


# ---------------------------------------------------------------- output


@pytest.fixture
def holed(master):
    """Of 960 bytes the middle was not kept. They come in pieces of 150."""
    written = b"".join(b"%d;" % number for number in range(2000))[:600] + "äöü€".encode() * 40
    kept = [(0, 300), (699, len(written))]

    def output(asked):
        at = asked.offset if asked.fence else 0
        for start, end in kept:
            while at < end:
                dropped, at = max(0, start - at), max(at, start)
                piece = written[at : min(at + 150, end)]
                yield msg.Logged(offset=at, dropped=dropped, fence=41), piece
                at += len(piece)
        yield msg.Logged(offset=at, fence=41, final=True, state="COMPLETED", attempt=1)

    master.script(msg.Logs, output)
    return written


MARK = "\n[… 399 bytes not kept …]\n"


def test_json_tells_of_what_was_not_kept_as_the_text_does(cli, holed):
    text = holed[:300].decode() + MARK + holed[699:].decode()
    assert cli("logs", "12/t").text == text
    document = cli("logs", "12/t", "--json").document
    assert document == {"id": "12/t", "output": text, "gaps": [{"offset": 300, "bytes": 399}], "next": None}


@pytest.mark.parametrize("limit", [4, 7, 150, 151, 300, 1 << 30])
def test_an_output_is_read_in_pages_that_cut_no_character(cli, holed, limit):
    texts, gaps, cursor = [], [], None
    while not texts or cursor:
        more = ("--cursor", cursor) if cursor else ()
        page = cli("logs", "12/t", "--limit", limit, *more, "--json").document
        texts.append(page["output"])
        gaps += page["gaps"]
        cursor = page["next"]
        assert len(page["output"].replace(MARK, "").encode()) <= limit
    whole = "".join(texts)
    assert whole == holed[:300].decode() + MARK + holed[699:].decode()
    assert gaps == [{"offset": 300, "bytes": 399}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cursor", "7"], "'7' is no cursor"),
        (["--cursor", "x.y"], "'x.y' is no cursor"),
        (["--cursor", "1.2", "--tail", "3"], "leave out --tail and --attempt"),
        (["--cursor", "1.2", "--attempt", "3"], "leave out --tail and --attempt"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_page_of_an_output_that_is_none_ends_with_2(cli, master, arguments, said):
    assert said in cli("logs", "12/t", *arguments, code=2).err
    assert master.asked == []
