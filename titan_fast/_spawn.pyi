"""The contract of the process starter: `_spawn.pyx` (compiled) and `_spawn_py.py` (pure)."""

from collections.abc import Sequence

Note = tuple[int, bytes]
"""A descriptor open for appending, and what is written there before ``pid,seconds since boot]`` and a line's end."""

def spawn(
    argv: Sequence[bytes], env: Sequence[bytes], cwd: bytes, output: bytes, file_limit: int, note: Note | None = None
) -> tuple[int, int]:
    """Start a program in a session (and so a process group) of its own.

    Standard input is /dev/null, standard output and error are the file ``output``, every other descriptor is closed;
    default signal dispositions, empty signal mask; RLIMIT_FSIZE is ``file_limit`` bytes when that is positive. The
    interpreter lock is not held while the child is made.

    Args:
        argv: the program (a path with a slash; nothing is searched) and its arguments.
        env: ``KEY=value`` entries.
        cwd: where it runs.
        output: the path of a file that is there, and no symbolic link; it is appended to.
        note: what the new process writes, in one write, before it becomes the program: so no program runs that was
            not noted, whenever this process is killed. At most 200 bytes.

    Returns:
        (pid, pidfd); pidfd is -1 where the kernel has none.

    Raises:
        OSError: with the errno of the step that failed (exec, chdir, …) and, as ``filename``, the program, the folder
            or the output. No child is left behind.
        ValueError: empty argv or a NUL byte in a string.
    """
