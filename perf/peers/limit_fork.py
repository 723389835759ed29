"""The limit of W4: forks of a small interpreter that execute compiled scripts, two in flight.

A program of its own, started with ``-I -S``: what a fork costs grows with what its parent has imported, so this imports
nothing but what it needs. Each line on standard input is the paths of scripts, the answer their exit codes.
"""

import gc
import os
import sys

SLOTS = 2
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def run(code, output):
    """A child that does what an interpreter does for a script, and has its output in the file."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        exec(code, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    finally:
        os._exit(1)


def reap():
    return os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])


def run_all(codes, places):
    ended = []
    running = 0
    for number, code in enumerate(codes):
        if running == SLOTS:
            ended.append(reap())
            running -= 1
        place = places[number % len(places)]
        os.unlink(place)
        output = os.open(place, FLAGS, 0o600)
        run(code, output)
        os.close(output)
        running += 1
    return ended + [reap() for _ in range(running)]


def main(folder):
    places = [f"{folder}/fork-output-{number}" for number in range(4 * SLOTS)]
    for place in places:
        os.close(os.open(place, FLAGS, 0o600))
    for line in iter(sys.stdin.readline, ""):
        codes = []
        for path in line.split():
            with open(path) as file:
                codes.append(compile(file.read(), path, "exec"))
        gc.freeze()
        print(*run_all(codes, places), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
