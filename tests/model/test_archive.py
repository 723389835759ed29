"""What of a project folder travels, as which bytes, and what is refused instead."""

import hashlib
import io
import os
import socket
import tarfile

import pytest

from titan_fast.errors import ProjectError
from titan_fast.model import archive
from titan_fast.model.archive import PRIVATE_MARKER, Packed, mark_private, pack_project

IGNORE = "remove it, or name it in .titanignore"


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def put(folder, *names, content="x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def packed(folder, **options) -> bytes:
    file = io.BytesIO()
    digest, size = pack_project(folder, file, **options)
    data = file.getvalue()
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    return data


def names(folder, **options) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed(folder, **options))) as tar:
        return tar.getnames()


def refusal(folder, **options) -> ProjectError:
    with pytest.raises(ProjectError) as refused:
        pack_project(folder, io.BytesIO(), **options)
    return refused.value


# ---------------------------------------------------------------- the bytes


def test_the_same_files_are_the_same_bytes_wherever_and_whenever(tmp_path):
    archives = []
    for number, order in enumerate(
        (("b/z.py", "b/a.py", "é.txt", "a-b", "a"), ("a", "a-b", "é.txt", "b/a.py", "b/z.py"))
    ):
        folder = tmp_path / f"copy{number}"
        put(folder, *order)
        (folder / "a").chmod(0o700 if number else 0o775)
        (folder / "a-b").chmod(0o600 if number else 0o664)
        os.utime(folder / "a", (number, number))
        archives.append(packed(folder))
    assert archives[0] == archives[1]


def test_entries_are_sorted_and_say_nothing_of_owner_time_and_umask(project):
    put(project, "b/c.py", "b.py", "a")
    (project / "empty").mkdir()
    (project / "b.py").chmod(0o751)
    with tarfile.open(fileobj=io.BytesIO(packed(project))) as tar:
        entries = [(each.name, each.isdir(), each.mode, each.mtime, each.uid, each.gid, each.uname) for each in tar]
    assert entries == [
        ("a", False, 0o644, 0, 0, 0, ""),
        ("b", True, 0o755, 0, 0, 0, ""),
        ("b.py", False, 0o755, 0, 0, 0, ""),
        ("b/c.py", False, 0o644, 0, 0, 0, ""),
        ("empty", True, 0o755, 0, 0, 0, ""),
    ]


def test_long_and_foreign_names_and_their_contents_come_back(project, tmp_path):
    long = "/".join(["folder-with-a-long-name"] * 8) + "/файл.txt"
    put(project, long, content="grüße")
    with tarfile.open(fileobj=io.BytesIO(packed(project))) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out" / long).read_text() == "grüße"


def test_a_name_that_is_no_utf8_is_packed(project):
    (project / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    assert names(project) == ["caf\udce9.txt"]


def test_a_path_is_written_whole_or_not_at_all(project, tmp_path):
    put(project, "a.py")
    done = pack_project(project, tmp_path / "a.tar")
    assert done == Packed(hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest(), 10240)
    os.mkfifo(project / "pipe")
    with pytest.raises(ProjectError):
        pack_project(project, tmp_path / "b.tar")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tar", "project"]


def test_an_empty_folder_is_a_project(project):
    assert names(project) == []


def test_a_folder_that_is_not_there(tmp_path):
    assert str(refusal(tmp_path / "no")) == f"there is no project folder {tmp_path}/no"


# ---------------------------------------------------------------- what is left out


def test_what_does_not_belong_to_a_project_is_left_out(project):
    put(project, "a.py", ".git/config", "sub/.git", "__pycache__/a.pyc", "sub/__pycache__/b.pyc", "sub/b.py")
    put(project, ".venv/pyvenv.cfg", ".venv/bin/python", "env-3/pyvenv.cfg", "tokens/127.0.0.1_9090.client")
    put(project, "home/state/db", f"home/state/{PRIVATE_MARKER}", "home/x", "work/w1/file")
    mark_private(project / "work")
    assert names(project) == ["a.py", "home", "home/x", "sub", "sub/b.py"]


def test_ignore_files_are_obeyed_as_git_does(project):
    put(
        project,
        "a.py",
        "a.log",
        "keep.log",
        "build/x",
        "src/build/y",
        "src/z.log",
        "src/data/big",
        "data/small",
        "#odd",
    )
    (project / ".gitignore").write_text("# comment\n*.log\n!keep.log\n/build/\n\\#odd\n")
    (project / "src" / ".gitignore").write_text("data/\n!z.log\n")
    (project / ".titanignore").write_text("data/small\n.*ignore\n")
    assert names(project) == ["a.py", "data", "keep.log", "src", "src/build", "src/build/y", "src/z.log"]


def test_titanignore_brings_back_what_git_or_we_leave_out_but_no_secrets(project):
    put(project, "models/m.bin", "tokens/vocabulary.txt", ".git/config", f"own/{PRIVATE_MARKER}", "own/x")
    (project / ".gitignore").write_text("models/\n")
    (project / ".titanignore").write_text("!models/\n!tokens/\n!.git/\n!own/\n.*ignore\n")
    assert names(project) == ["models", "models/m.bin", "tokens", "tokens/vocabulary.txt"]


def test_titan_fasts_own_folder_is_no_project(project):
    mark_private(project)
    assert str(refusal(project)) == f"{project} is a folder titan-fast keeps its own files in, not a project"


def test_the_named_files_alone_travel_when_that_is_asked(project):
    put(project, "a.py", "s/t/b.py", "s/c.py", "d.py")
    (project / ".gitignore").write_text("*.py\n")
    assert names(project, files=["s/t/b.py", "a.py", "a.py"]) == ["a.py", "s", "s/t", "s/t/b.py"]
    assert str(refusal(project, files=["no.py"])) == "'no.py' in the project cannot be read: No such file or directory"
    assert str(refusal(project, files=["../x"])).startswith("'../x' in the project cannot be read")
    put(project.parent, "x")
    assert str(refusal(project, files=["../x"])) == "'../x' leads outside the project"
    put(project, "tokens/client")
    (project / "link.py").symlink_to("tokens/client")
    assert str(refusal(project, files=["link.py"])).startswith("'link.py' is a link into tokens/")
    assert str(refusal(project, files=["s"])) == "'s' in the project is not a file"


# ---------------------------------------------------------------- links


def test_links_inside_are_packed_as_what_they_lead_to(project):
    put(project, "data/2026/a.csv", content="1,2")
    (project / "latest").symlink_to("data/2026")
    (project / "a.csv").symlink_to(project / "latest" / "a.csv")
    with tarfile.open(fileobj=io.BytesIO(packed(project))) as tar:
        assert tar.getnames() == ["a.csv", "data", "data/2026", "data/2026/a.csv", "latest", "latest/a.csv"]
        assert all(each.isfile() or each.isdir() for each in tar)
        assert tar.extractfile("a.csv").read() == tar.extractfile("latest/a.csv").read() == b"1,2"


def test_a_project_may_be_named_by_a_link(project, tmp_path):
    put(project, "a.py")
    (project / "b.py").symlink_to(project / "a.py")
    (tmp_path / "here").symlink_to(project)
    assert names(tmp_path / "here") == ["a.py", "b.py"]


def test_a_link_that_leads_outside_is_refused_even_to_a_sibling_of_the_same_prefix(project):
    put(project.with_name("project-2"), "secret")
    (project / "out").symlink_to("../project-2/secret")
    error = refusal(project)
    assert str(error) == f"'out' is a link that leads outside the project, to {project}-2/secret"
    assert (error.hint, error.exit_code) == (IGNORE, 2)


def test_a_link_that_leads_outside_harms_nobody_when_it_is_ignored(project):
    (project / "out").symlink_to("/etc/passwd")
    (project / ".titanignore").write_text("out\n")
    assert names(project) == [".titanignore"]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("nothing", "'link' is a link that leads nowhere, to nothing"),
        ("link", "'link' is a link that leads nowhere, to link"),
        (".", "'link' is a link that leads to a folder around it"),
        ("tokens/client", "'link' is a link into tokens/, which is left out of projects"),
        (".git/config", "'link' is a link into .git/, which is left out of projects"),
        ("own/x", "'link' is a link into own/, which is left out of projects"),
    ],
)
def test_a_link_that_cannot_be_packed_is_refused_by_name(project, end, message):
    put(project, "tokens/client", ".git/config", "own/x", f"own/{PRIVATE_MARKER}")
    (project / "link").symlink_to(end)
    error = refusal(project)
    assert (str(error), error.hint) == (message, IGNORE)


def test_links_between_folders_that_never_end_are_refused(project):
    put(project, "a/x", "b/y")
    (project / "a" / "to-b").symlink_to("../b")
    (project / "b" / "to-a").symlink_to("../a")
    assert "is a link that leads to a folder around it" in str(refusal(project))


# ---------------------------------------------------------------- what is refused


def test_a_socket_is_refused_by_name(project, monkeypatch):
    monkeypatch.chdir(project)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("agent.sock")
        error = refusal(project)
    assert (str(error), error.hint) == ("'agent.sock' in the project is a socket, which cannot be shipped", IGNORE)


def test_a_named_pipe_is_refused_by_name(project):
    (project / "sub").mkdir()
    os.mkfifo(project / "sub" / "pipe")
    assert str(refusal(project)) == "'sub/pipe' in the project is a named pipe, which cannot be shipped"


def test_a_project_over_256_mib_is_refused_with_what_is_large(project):
    put(project, "a.py", "data/small")
    for name, size in (("data/big", 200 << 20), ("model.bin", 100 << 20)):
        with open(project / name, "wb") as file:
            file.truncate(size)
    error = refusal(project)
    assert str(error) == f"the project {project} has 300 MiB, at most 256 MiB can be shipped"
    assert error.hint == (
        "name what its tasks do not need in .titanignore: data/ has 200 MiB, model.bin has 100 MiB, a.py has 1 B"
    )
    (project / ".titanignore").write_text("/data\n")
    assert pack_project(project, io.BytesIO()).size < 256 << 20


def test_too_many_files_are_refused_with_where_they_are(project, monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 5)
    put(project, *(f"many/{number}" for number in range(9)))
    error = refusal(project)
    assert str(error) == f"the project {project} has more than 5 files and folders"
    assert error.hint == "name what its tasks do not need in .titanignore: many/ has 5"


def test_a_file_that_shrinks_while_it_is_read_is_told(project, monkeypatch):
    put(project, "a.log", content="x" * 1000)
    add = tarfile.TarFile.addfile

    def shrink_and_add(self, info, source=None):
        os.truncate(project / "a.log", 10)
        return add(self, info, source)

    monkeypatch.setattr(tarfile.TarFile, "addfile", shrink_and_add)
    assert str(refusal(project)) == "'a.log' in the project cannot be read: it changed while it was read"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_nobody_may_read_is_told(project):
    put(project, "a.py")
    (project / "a.py").chmod(0)
    assert str(refusal(project)) == "'a.py' in the project cannot be read: Permission denied"
