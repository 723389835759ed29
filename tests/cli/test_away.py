"""A master that goes away under a command: it is said once, what was asked is done once, and the output is whole."""

from __future__ import annotations

import pytest

from titan_fast.protocol import messages as msg

AWAY = "titan-fast: the master is away; waiting for it\n"
BACK = "titan-fast: the master is back\n"
ROW = msg.RunRow(12, "g", "RUNNING", "", 1.0, 1.0, 0.0, {"RUNNING": 1})


def update(final=False):
    state = "COMPLETED" if final else "RUNNING"
    return msg.Update(12, "g", state, {state: 1}, final=final, task_state=state, exit_code=0)


@pytest.fixture
def script(master):
    """A run 12 with a task t that writes eight bytes."""

    def output(asked):
        for offset in range(asked.offset, 8, 3):
            yield msg.Logged(offset=offset, fence=41), b"12345678"[offset : offset + 3]
        yield msg.Logged(offset=8, fence=41, final=True, state="COMPLETED", attempt=1)

    def submitted(asked):
        return [msg.Accepted(12), update(final=True)] if asked.watch else [msg.Accepted(12)]

    master.script(msg.Submit, submitted)
    master.on(msg.Cancel, msg.Accepted(12))
    master.on(msg.Show, msg.Shown(ROW, ()))
    master.on(msg.Watch, update(), update(), update(final=True))
    master.script(msg.Logs, output)


@pytest.mark.parametrize(
    ("arguments", "steps", "out"),
    [
        (("wait", "12"), 5, "run 12 COMPLETED: 1 task in 0.0 s\n"),
        (("wait", "12/t"), 5, "task 12/t COMPLETED\n"),
        (("wait", "last"), 8, "run 12 COMPLETED: 1 task in 0.0 s\n"),
        (("submit", "--wait", "--", "true"), 4, "run 12 COMPLETED: 1 task in 0.0 s\n"),
        (("run", "g.yaml"), 4, "run 12 COMPLETED: 1 task in 0.0 s\n"),
        (("cancel", "12", "--wait"), 8, "12 cancelled\n"),
        (("logs", "-f", "12/t"), 6, "12345678"),
        (("logs", "12/t"), 6, "12345678"),
    ],
)
def test_a_command_goes_on_wherever_its_master_went_away(cli, master, script, tmp_path, arguments, steps, out):
    (tmp_path / "g.yaml").write_text("tasks: {t: {run: 'true'}}")
    assert cli(*arguments).text == out
    assert master.steps >= steps
    for step in range(steps):
        master.steps = 0
        master.asked.clear()
        master.carried_out.clear()
        master.break_at(step, away=1)
        done = cli(*arguments)
        assert done.text == out
        assert done.err.replace("run 12 submitted\n", "") == AWAY + BACK
        changes = [type(asked) for asked in master.carried_out if isinstance(asked, msg.Submit | msg.Cancel)]
        assert len(changes) == (arguments[0] in ("submit", "run", "cancel"))


def test_who_waits_for_the_last_run_keeps_waiting_for_that_one(cli, master, script):
    master.break_at(6)
    cli("wait", "last")
    assert [asked.run for asked in master.asked] == [0, 12, 12]


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (("wait", "12"), "titan-fast wait 12"),
        (("wait", "12/t"), "titan-fast wait 12/t"),
        (("logs", "-f", "12/t"), "titan-fast logs -f 12/t"),
        (("cancel", "12"), "titan-fast cancel 12"),
        (("submit", "--", "true"), "titan-fast ls"),
    ],
)
def test_a_master_that_stays_away_ends_with_3_and_the_command_to_go_on(
    cli, master, script, monkeypatch, arguments, then
):
    monkeypatch.setenv("TITAN_CLIENT_RECONNECT_TIMEOUT", "0.1")
    master.break_at(*range(1000))
    done = cli(*arguments, "--json", code=3) if "--" not in arguments else cli(*arguments, code=3)
    assert "went away and did not come back within 0.1 s" in done.err
    assert then in done.err


def test_a_run_of_a_lost_state_is_told(cli, master, script):
    class Forgetful(type(master)):
        def _prove(self, *arguments):
            answer = super()._prove(*arguments)
            self.history += "x"
            return answer

    master.__class__ = Forgetful
    master.break_at(3)
    assert "there is no run 12 any more" in cli("wait", "12", code=4).err
