"""The worker's directory against clumsy tasks and hostile archives; what an attempt is given."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading

import pytest

from titan_fast.errors import InvalidGraph, ProjectError, StateLocked
from titan_fast.ids import make_fence
from titan_fast.model.spec import Work
from titan_fast.worker import unpacking
from titan_fast.worker.command import build_environment, inherit, resolve_command
from titan_fast.worker.workspace import Workspace

DEADLINE = 20


@pytest.fixture
def root(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def space(root):
    workspace = Workspace(root)
    workspace.open()
    yield workspace
    workspace.close()
    assert os.listdir(root / "trash") == [], "what is thrown away is deleted"


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    yield
    if names:
        assert len(os.listdir("/proc/self/fd")) == len(names)


# ---------------------------------------------------------------- the directory


def test_the_id_is_made_once(root):
    ids = []
    for _ in range(2):
        workspace = Workspace(root)
        workspace.open()
        ids.append(workspace.worker_id)
        workspace.close()
    assert ids[0] == ids[1] and len(ids[0]) == 32
    (root / "id").write_text("")
    workspace = Workspace(root)
    workspace.open()
    workspace.close()
    assert len(workspace.worker_id) == 32, "an empty file is no id"


def test_nobody_else_may_look_in(space, root):
    for folder in ("", "runs", "attempts", "projects"):
        assert os.stat(root / folder).st_mode & 0o77 == 0


def test_a_second_agent_is_refused(space, root):
    code = (
        "from titan_fast.worker.workspace import Workspace\n"
        "from titan_fast.errors import StateLocked\n"
        f"try: Workspace({str(root)!r}).open()\n"
        "except StateLocked as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, cwd=os.getcwd(), check=True
    )
    assert f"{root} is in use by another worker (process {os.getpid()})" in done.stdout
    assert (root / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_ends_with_the_process(root):
    code = f"from titan_fast.worker.workspace import Workspace; Workspace({str(root)!r}).open(); import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, check=True)
    workspace = Workspace(root)
    try:
        workspace.open()
    except StateLocked:
        pytest.fail("the lock outlived its process")
    workspace.close()


def test_projects_around_it_leave_it_out(space, root):
    assert (root / ".titan-fast-private").exists()


def test_leftovers_of_an_earlier_agent(space, root):
    for fence in (7, 8):
        space.attempt_dir(fence)
    (root / "runs" / ".new-3-abcd").mkdir()
    (root / "projects" / ".new-abcd").mkdir()
    space.working_copy(5)
    space.close()
    again = Workspace(root)
    again.open()
    assert sorted(os.listdir(root / "attempts")) == ["0.7", "0.8"], "whose they are is in the journal"
    again.keep_attempts([8])
    assert os.listdir(root / "attempts") == ["0.8"]
    assert os.listdir(root / "runs") == ["5"] and again.runs() == [5]
    assert os.listdir(root / "projects") == [".boot"] or not os.path.exists("/proc/sys/kernel/random/boot_id")
    again.close()
    space.open()


# ---------------------------------------------------------------- attempts


def test_attempt_directories(space, root):
    fence = make_fence(3, 17)
    place = space.attempt_dir(fence)
    assert place == str(root / "attempts" / "3.17")
    assert os.listdir(place) == []
    assert space.attempt_dir(fence, make=False) == place


def test_a_used_directory_comes_back_empty(space, root):
    place = space.attempt_dir(1)
    for name in ("output", "output.gap", "result"):
        with open(f"{place}/{name}", "w") as file:
            file.write("old")
    os.chmod(place, 0o500)
    inode = os.stat(place).st_ino
    space.remove_attempt(1)
    assert not os.path.exists(place)
    place = space.attempt_dir(2)
    assert os.stat(place).st_ino == inode
    assert os.listdir(place) == [] and os.stat(place).st_mode & 0o777 == 0o700


def test_an_output_is_used_again_when_nobody_else_has_it(space, tmp_path):
    def output_of(fence):
        path = f"{space.attempt_dir(fence)}/output"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        with open(path, "w") as file:
            file.write("old")
        return path

    inode = os.stat(output_of(1)).st_ino
    space.remove_attempt(1)
    path = output_of(2)
    assert os.stat(path).st_ino == inode
    space.remove_attempt(2)
    place = space.attempt_dir(3)
    assert os.listdir(place) == ["output"] and not os.stat(f"{place}/output").st_size

    with open(f"{place}/output", "a"):
        space.remove_attempt(3)
    assert os.listdir(space.attempt_dir(4)) == [], "somebody had it open"
    space.remove_attempt(4)
    os.link(output_of(5), tmp_path / "kept")
    space.remove_attempt(5)
    assert os.listdir(space.attempt_dir(6)) == [] and (tmp_path / "kept").read_text() == "old"


def test_a_large_result_is_left_to_a_thread(space, root):
    place = space.attempt_dir(1)
    with open(f"{place}/result", "wb") as file:
        file.truncate(1 << 30)
    space.remove_attempt(1)
    assert not os.path.exists(place) and os.listdir(root / "spare") == []
    space.close()
    assert os.listdir(root / "trash") == []
    space.open()


def test_spare_directories_survive_a_restart(space, root):
    space.attempt_dir(1)
    space.remove_attempt(1)
    space.close()
    again = Workspace(root)
    again.open()
    again.attempt_dir(2)
    again.remove_attempt(2)
    assert len(os.listdir(root / "spare")) == 1
    os.rmdir(root / "spare" / os.listdir(root / "spare")[0])
    assert os.path.isdir(again.attempt_dir(3)), "made anew when the spare one is gone"
    again.close()
    space.open()


def test_scratch_goes_and_output_stays(space):
    place = space.attempt_dir(1)
    os.makedirs(f"{place}/deep/deeper")
    for name in ("output", "result", "scratch.bin", "deep/file"):
        with open(f"{place}/{name}", "w") as file:
            file.write("x")
    space.drop_scratch(1)
    assert sorted(os.listdir(place)) == ["output", "result"]
    space.drop_scratch(99)
    space.remove_attempt(99)


def test_what_clumsy_tasks_leave(space, root, tmp_path):
    """Folders nobody may enter, links out, something else in place of the directory."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "output").write_text("precious")

    place = space.attempt_dir(1)
    os.makedirs(f"{place}/closed/inner")
    os.symlink(victim, f"{place}/closed/link")
    os.chmod(f"{place}/closed", 0o000)
    space.remove_attempt(1)

    place = space.attempt_dir(2)
    os.rmdir(place)
    os.symlink(victim, place)
    space.remove_attempt(2)

    place = space.attempt_dir(3)
    os.makedirs(f"{place}/output/folder")
    space.remove_attempt(3)

    place = space.attempt_dir(4)
    os.rmdir(place)
    with open(place, "w"):
        pass
    space.remove_attempt(4)

    assert os.listdir(root / "attempts") == []
    assert (victim / "output").read_text() == "precious"


# ---------------------------------------------------------------- projects and working copies


def entry(name, data=b"", kind=tarfile.REGTYPE, mode=0o644, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = mode
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(*entries, form=tarfile.PAX_FORMAT):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def add(space, raw):
    digest = hashlib.sha256(raw).hexdigest()
    part = space.project_part(digest)
    part.write_bytes(raw)
    try:
        space.add_project(digest, part)
    finally:
        part.unlink()
    return digest


def tree_of(folder):
    found = {}
    for place, names, files in os.walk(folder):
        for name in [*names, *files]:
            path = os.path.join(place, name)
            relative = os.path.relpath(path, folder)
            found[relative] = None if os.path.isdir(path) else open(path, "rb").read()  # noqa: SIM115
    return found


def test_a_project_is_unpacked_once_and_copied_per_run(space, root):
    long = "x" * 150 + "/" + "é" * 60
    raw = archive(
        entry("./", kind=tarfile.DIRTYPE),
        entry("src/", kind=tarfile.DIRTYPE),
        entry("src/main.py", b"print()"),
        entry("./run.sh", b"#!/bin/sh\n", mode=0o6755),
        entry("a//b/./c", b"deep"),
        entry(long, b"long"),
        entry("empty"),
    )
    digest = add(space, raw)
    assert space.has_project(digest)
    expected = {
        "src": None,
        "src/main.py": b"print()",
        "run.sh": b"#!/bin/sh\n",
        "a": None,
        "a/b": None,
        "a/b/c": b"deep",
        "x" * 150: None,
        long: b"long",
        "empty": b"",
    }
    one = space.working_copy(1, digest)
    assert one == str(root / "runs" / "1")
    assert tree_of(one) == expected
    assert os.stat(f"{one}/run.sh").st_mode & 0o7777 == 0o755, "executable, and no more than that"
    assert os.stat(f"{one}/src/main.py").st_mode & 0o7777 == 0o644
    with open(f"{one}/src/main.py", "w") as file:
        file.write("changed by a task")
    assert space.working_copy(1, digest) == space.working_copy(1) == one
    assert tree_of(space.working_copy(2, digest)) == expected
    assert space.runs() == [1, 2]
    add(space, raw)
    space.forget_run(1)
    assert not os.path.exists(one) and space.runs() == [2]
    assert tree_of(space.working_copy(1, digest)) == expected
    space.forget_run(99)
    space.forget_project(digest)
    assert not space.has_project(digest)


def test_formats_of_tar(space):
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = "n" * 90
        digest = add(space, archive(entry(f"folder/{name}", bytes(100_000)), form=form))
        run = form + 10
        assert tree_of(space.working_copy(run, digest)) == {"folder": None, f"folder/{name}": bytes(100_000)}


def test_a_run_without_a_project_works_in_an_empty_folder(space):
    assert os.listdir(space.working_copy(4)) == []
    assert space.has_working_copy(4) and not space.has_working_copy(5)


def test_a_project_that_is_not_here(space):
    with pytest.raises(ProjectError, match="is not on this worker"):
        space.working_copy(1, "0" * 64)
    assert space.runs() == []


def test_two_at_once(space, root):
    """The same project and the same run from many threads: one of each, and whole."""
    raw = archive(*(entry(f"file{number}", b"x" * 100) for number in range(50)))
    digest = hashlib.sha256(raw).hexdigest()
    part = space.project_part(digest)
    part.write_bytes(raw)
    places = []

    def work():
        space.add_project(digest, part)
        places.append(space.working_copy(1, digest))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    part.unlink()
    assert set(places) == {str(root / "runs" / "1")} and len(places) == 8
    assert len(tree_of(places[0])) == 50
    assert not [name for name in os.listdir(root / "projects") if name.startswith(".new")]


def test_it_remembers_whose_runs_it_holds(space, root):
    assert space.history == ""
    space.remember_history("cluster-a")
    space.close()
    again = Workspace(root)
    again.open()
    assert again.history == "cluster-a"
    again.close()
    space.open()


def test_it_knows_whether_something_can_be_written(space, root):
    assert space.has_room()
    assert not (root / "room").exists()
    (root / "room").mkdir()
    assert not space.has_room()


SPARSE = entry("sparse", kind=tarfile.GNUTYPE_SPARSE)
ATTACKS = {
    "parent": ([entry("../evil", b"x")], "leads outside"),
    "parent inside": ([entry("a/../../evil", b"x")], "leads outside"),
    "sibling with the same prefix": ([entry("../{sha}-evil/x", b"x")], "leads outside"),
    "absolute": ([entry("/tmp/evil", b"x")], "leads outside"),
    "parent folder": ([entry("..", kind=tarfile.DIRTYPE)], "leads outside"),
    "symlink": ([entry("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd")], "no file or folder"),
    "symlink, then through it": (
        [entry("link", kind=tarfile.SYMTYPE, linkname="/tmp"), entry("link/evil", b"x")],
        "no file or folder",
    ),
    "hard link": ([entry("link", kind=tarfile.LNKTYPE, linkname="/etc/passwd")], "no file or folder"),
    "device": ([entry("device", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)], "no file or folder"),
    "fifo": ([entry("fifo", kind=tarfile.FIFOTYPE)], "no file or folder"),
    "sparse": ([SPARSE], "no file or folder"),
    "twice": ([entry("a", b"x"), entry("./a", b"y")], "twice"),
    "file as folder": ([entry("a", b"x"), entry("a/b", b"y")], "as a file and as a folder"),
    "folder as file": ([entry("a/b", b"x"), entry("a", b"y")], "twice"),
    "no name": ([entry("./", b"x")], "without a name"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_hostile_archives(space, root, attack):
    entries, words = ATTACKS[attack]
    with pytest.raises(ProjectError, match=words):
        add(space, archive(entry("good", b"x"), *entries))
    assert [name for name in os.listdir(root / "projects") if name != ".boot"] == []
    assert sorted(os.listdir(root.parent)) == ["work"], "nothing was written beside"
    assert not os.path.exists("/tmp/evil")


def test_bombs(root):
    workspace = Workspace(root, max_project_bytes=10_000, max_project_entries=20)
    workspace.open()
    deep = "/".join("d" * 30)
    cases = [
        [entry("big", bytes(10_001))],
        [entry(f"part{number}", bytes(1000)) for number in range(11)],
        [entry(f"empty{number}") for number in range(21)],
        [entry(f"folder{number}", kind=tarfile.DIRTYPE) for number in range(21)],
        [entry(deep, b"x")],
    ]
    for entries in cases:
        with pytest.raises(ProjectError, match="too large to be unpacked: 10,000 bytes and 20 entries"):
            add(workspace, archive(*entries))
    add(workspace, archive(*(entry(f"part{number}", bytes(1000)) for number in range(10))))
    workspace.close()


def header(name=b"file", size=b"00000000010\0", kind=b"0"):
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124 : 124 + 12] = size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LIES = {
    "nothing": b"",
    "no archive": b"this is no archive" * 100,
    "gzip": b"\x1f\x8b\x08" + bytes(600),
    "ends in a file": header(size=b"00000010000\0") + b"x" * 100,
    "ends in a header": header()[:300],
    "negative size": header(size=b"\xff" * 12) + bytes(1024),
    "negative long name": header(size=b"\xff" * 12, kind=b"L") + bytes(1024),
    "size beyond the end": header(size=b"77777777777\0") + bytes(1024),
    "huge long name": header(size=b"\x80\0\0\0\0\0\0\x7f\xff\xff\xff\xff", kind=b"L") + bytes(1024),
    "huge pax record": header(size=b"\x80\0\0\0\0\0\0\x7f\xff\xff\xff\xff", kind=b"x") + bytes(1024),
    "negative pax size": header(size=b"00000000016\0", kind=b"x")
    + b"14 size=-1024\n".ljust(512, b"\0")
    + header()
    + bytes(1024),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_archives_that_lie(space, root, lie):
    with pytest.raises(ProjectError):
        add(space, LIES[lie])
    assert [name for name in os.listdir(root / "projects") if name != ".boot"] == []


def test_an_archive_is_read_forward_only():
    source = unpacking._Forward(io.BytesIO(bytes(100)))
    source.seek(50)
    assert source.read(10) == bytes(10) and source.tell() == 60
    with pytest.raises(ProjectError, match="leads back"):
        source.seek(59)


def test_every_cut_of_an_archive_is_refused_or_whole(space):
    """Cut anywhere, it is refused, unless only padding is missing."""
    raw = archive(entry("folder/a", b"x" * 700), entry("b", b"y"))
    for length in range(0, 3600, 37):
        try:
            digest = add(space, raw[:length])
        except ProjectError:
            continue
        content = tree_of(space.working_copy(length, digest))
        assert set(content.items()) <= {("folder", None), ("folder/a", b"x" * 700), ("b", b"y")}


def test_the_bytes_must_be_those_of_the_address(space):
    raw = archive(entry("a", b"x"))
    part = space.project_part("0" * 64)
    part.write_bytes(raw)
    with pytest.raises(ProjectError, match="is not the one with the address"):
        space.add_project("0" * 64, part)
    part.unlink()


@pytest.mark.parametrize("digest", ["", "../../etc", "0" * 63, "0" * 65, "0" * 64 + "\n", "G" * 64, "A" * 64])
def test_an_address_never_becomes_another_path(space, digest):
    for use in (space.has_project, space.project_part, space.forget_project):
        with pytest.raises(ProjectError, match="is not the address of a project"):
            use(digest)


# ---------------------------------------------------------------- what an attempt is given


BASE = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LC_ALL": "C",
    "LC_TIME": "de",
    "TZ": "UTC",
    "AWS_SECRET_ACCESS_KEY": "leak",
    "TITAN_TOKEN": "leak",
    "TITAN_KEEPER_PID": "1",
    "LD_PRELOAD": "/evil.so",
    "PATHOLOGICAL": "no",
    "XPATH": "no",
    "CUDA_HOME": "/cuda",
    "CUDA_PATH": "/cuda",
}


def environment(work=None, base=BASE, payload=None, graph_env=None, allow="", results=None):
    return build_environment(
        base,
        allow=allow,
        graph_env=graph_env or {},
        work=work or Work(argv=("true",)),
        payload=payload,
        results=results,
        run=12,
        task="12/extract",
        attempt=2,
        fence=make_fence(3, 17),
        worker="w1",
        worker_id="ab" * 16,
        attempt_dir="/somewhere/attempts/3.17",
    )


TOLD = {
    "TITAN_RUN_ID": "12",
    "TITAN_TASK": "12/extract",
    "TITAN_ATTEMPT": "2",
    "TITAN_FENCE": "3.17",
    "TITAN_WORKER": "w1",
    "TITAN_WORKER_ID": "ab" * 16,
    "TITAN_ATTEMPT_DIR": "/somewhere/attempts/3.17",
    "TITAN_RESULT": "/somewhere/attempts/3.17/result",
}
INHERITED = {"PATH": "/bin", "HOME": "/home/me", "LC_ALL": "C", "LC_TIME": "de", "TZ": "UTC"}


def test_environment_is_an_allow_list():
    assert environment() == {**INHERITED, **TOLD}


def test_allowed_further():
    assert inherit(BASE, "CUDA_*, XPATH ,,") == {
        **INHERITED,
        "CUDA_HOME": "/cuda",
        "CUDA_PATH": "/cuda",
        "XPATH": "no",
    }
    assert environment(base=inherit(BASE, "XPATH"), allow="XPATH")["XPATH"] == "no"


def test_who_wins():
    work = Work(argv=("true",), env={"A": "task", "HOME": "/task", "TITAN_FENCE": "forged"})
    env = environment(work, graph_env={"A": "graph", "B": "graph", "TITAN_TASK": "forged", "PATH": "/graph"})
    assert env == {**INHERITED, **TOLD, "A": "task", "B": "graph", "HOME": "/task", "PATH": "/graph"}


def test_python_files_are_unbuffered():
    assert environment(Work(file="a.py"))["PYTHONUNBUFFERED"] == "1"
    assert environment(Work(file="a.py", env={"PYTHONUNBUFFERED": ""}))["PYTHONUNBUFFERED"] == ""
    assert "PYTHONUNBUFFERED" not in environment(Work(file="a.sh"))


def test_matrix_in_the_environment():
    work = Work(argv=("true",), env={"PART": "p-${matrix.part}-${matrix.part}", "PLAIN": "${HOME}"})
    env = environment(work, payload={"part": "7"}, graph_env={"G": "${matrix.part}"})
    assert (env["PART"], env["PLAIN"], env["G"]) == ("p-7-7", "${HOME}", "${matrix.part}")
    assert environment(work)["PART"] == "p-${matrix.part}-${matrix.part}", "outside of arrays it is a text"
    with pytest.raises(InvalidGraph, match=r"'\$\{matrix\.part\}' has no value; there are: other"):
        environment(work, payload={"other": "1"})


@pytest.fixture
def copy(tmp_path):
    """A working copy with files of all kinds."""
    files = {
        "main.py": ("print()", 0o644),
        "sub/tool.sh": ("#!/bin/sh\n", 0o755),
        "plain.sh": ("#!/usr/bin/env -S bash -e\necho\n", 0o644),
        "data.csv": ("a,b", 0o644),
        "spaced": ("#! /bin/sh  \n", 0o644),
        "hollow": ("#!\n", 0o644),
    }
    for name, (text, mode) in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    return str(tmp_path)


def test_commands(copy):
    cases = [
        (Work(argv=("ls", "-l", "${matrix.x}")), ("ls", "-l", "${matrix.x}")),
        (Work(shell="echo $HOME | cat"), ("/bin/sh", "-c", "echo $HOME | cat")),
        (Work(shell='echo "$1"', args=("a b",)), ("/bin/sh", "-c", 'echo "$1"', "sh", "a b")),
        (Work(file="main.py", args=("1", "2")), (sys.executable, "-u", f"{copy}/main.py", "1", "2")),
        (Work(file="main.py", python="python3.11"), ("python3.11", "-u", f"{copy}/main.py")),
        (Work(file="./sub//tool.sh", args=("x",)), (f"{copy}/sub/tool.sh", "x")),
        (Work(file="plain.sh"), ("/usr/bin/env", "-S bash -e", f"{copy}/plain.sh")),
        (Work(file="spaced"), ("/bin/sh", f"{copy}/spaced")),
    ]
    for work, expected in cases:
        assert resolve_command(work, None, copy) == expected


def test_matrix_in_commands(copy):
    payload = {"x": "a b", "n": 3, "flag": True, "list": [1, "é"], "name": "main", "py": "pypy"}
    cases = [
        (Work(argv=("run", "--${matrix.x}", "${matrix.n}${matrix.flag}")), ("run", "--a b", "3true")),
        (Work(shell="echo ${matrix.list} ${HOME} ${inputs.k}"), ("/bin/sh", "-c", 'echo [1,"é"] ${HOME} ${inputs.k}')),
        (
            Work(file="${matrix.name}.py", python="${matrix.py}", args=("${matrix.n}",)),
            ("pypy", "-u", f"{copy}/main.py", "3"),
        ),
    ]
    for work, expected in cases:
        assert resolve_command(work, payload, copy) == expected
    with pytest.raises(InvalidGraph, match="there are: flag, list, n, name, py, x"):
        resolve_command(Work(shell="${matrix.y}"), payload, copy)


def test_results_of_other_tasks_in_commands(copy):
    """Whatever they hold: what is put in is not looked at again."""
    results = {"a-1": "x ${matrix.n} ${tasks.b.result}", "b": ""}
    work = Work(argv=("run", "<${tasks.a-1.result}>", "${tasks.b.result}"), args=("${matrix.n}",))
    expected = ("run", "<x ${matrix.n} ${tasks.b.result}>", "", "3")
    assert resolve_command(work, {"n": 3}, copy, results) == expected
    assert resolve_command(Work(shell="echo ${tasks.b.result}!"), None, copy, results) == ("/bin/sh", "-c", "echo !")
    env = environment(Work(argv=("true",), env={"X": "${tasks.a-1.result}"}), results=results)
    assert env["X"] == results["a-1"]
    for reference in ("tasks.c.result", "tasks.b"):
        words = re.escape(f"'${{{reference}}}' has no value; there are results of: a-1, b")
        with pytest.raises(InvalidGraph, match=words):
            resolve_command(Work(shell=f"${{{reference}}}"), None, copy, results)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/etc/passwd", "leads out of the project"),
        ("../main.py", "leads out of the project"),
        ("sub/../../main.py", "leads out of the project"),
        ("sub/../main.py", "leads out of the project"),
        ("a\0.py", "leads out of the project"),
        ("none.py", "is not in the project"),
        ("main.py/x", "is not in the project"),
        ("sub", "is not a file"),
        ("data.csv", "cannot be run: it does not end in .py, is not executable and has no first line"),
        ("hollow", "cannot be run"),
    ],
)
def test_files_that_cannot_be_run(copy, file, words):
    with pytest.raises(InvalidGraph, match=words) as caught:
        resolve_command(Work(file=file), None, copy)
    assert caught.value.field == "file"


def test_a_matrix_value_cannot_lead_out_either(copy):
    with pytest.raises(InvalidGraph, match="leads out"):
        resolve_command(Work(file="${matrix.f}"), {"f": "../../bin/sh"}, copy)


def test_the_fast_path_is_cheap(space):
    """One rename, and nothing that grows with what is there: counted, not timed."""
    calls = []
    space.attempt_dir(1)
    space.remove_attempt(1)
    sys.setprofile(lambda _, event, function: calls.append(function) if event == "c_call" else None)
    try:
        space.attempt_dir(2)
    finally:
        sys.setprofile(None)
    system = [call.__name__ for call in calls if getattr(call, "__module__", "") == "posix"]
    assert system == ["rename"]
