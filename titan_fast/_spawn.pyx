# cython: language_level=3, boundscheck=False, wraparound=False
"""Starting a process without holding the interpreter lock (contract: `_spawn.pyi`, twin: `_spawn_py.py`).

One vfork: nothing of the parent is copied, so the cost does not grow with its memory. The child runs the C below on
the parent's memory until it has exec'ed, which is why it calls system calls only, with every signal blocked until
no handler of the parent is left. What failed comes back through that shared memory, so there is no error pipe.
O(arguments + environment). Buffers: `spawn` owns the two pointer arrays; the strings belong to the caller's bytes.
"""

import os

from libc.stdlib cimport free, malloc
from libc.string cimport strlen

from titan_fast._layout import MAX_NOTE

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/resource.h>
    #include <sys/types.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #endif

    #ifndef NSIG
    #define NSIG 65
    #endif

    enum { TITAN_NOTE = 200 };       /* _layout.MAX_NOTE */
    enum { TITAN_AT_START = 0, TITAN_AT_OUTPUT = 1, TITAN_AT_FOLDER = 2, TITAN_AT_PROGRAM = 3 };

    typedef struct {
        char **argv;
        char **env;
        const char *cwd;
        const char *output;
        long long file_limit;
        int note;               /* -1: none */
        const char *head;
        size_t head_size;
        pid_t pid;              /* out */
        int pidfd;              /* out: -1 where the kernel has none */
        volatile int error;     /* out: errno of the step that failed, written by the child */
        volatile int step;      /* out: which step that was */
    } titan_spawn;

    static int titan_dup(int from, int to) {
        if (from == to)         /* dup2 would do nothing and leave close-on-exec set */
            return fcntl(to, F_SETFD, 0);
        for (;;) {
            if (dup2(from, to) >= 0)
                return 0;
            if (errno != EINTR && errno != EBUSY)
                return -1;
        }
    }

    static void titan_close_from(int first) {
    #ifdef SYS_close_range
        if (syscall(SYS_close_range, (unsigned)first, ~0U, 0) == 0)
            return;
    #endif
        struct rlimit files;
        int last = 65536;       /* an unlimited table is not walked to its end: what we open is close-on-exec */
        if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < (rlim_t)last)
            last = (int)files.rlim_cur;
        for (; first < last; first++)
            close(first);
    }

    static void titan_fail(titan_spawn *s, int step) {
        s->error = errno;
        s->step = step;
        _exit(127);
    }

    static char *titan_digits(char *at, unsigned long long number, int width) {
        char text[24];
        int count = 0;
        do {
            text[count++] = (char)('0' + number % 10);
            number /= 10;
        } while (number || count < width);
        while (count)
            *at++ = text[--count];
        return at;
    }

    /* In the child: head, pid, seconds since boot. One write; if it fails, the parent's own note has to do. */
    static void titan_note(titan_spawn *s) {
        char line[TITAN_NOTE + 64], *at = line;
        struct timespec now;
    #ifdef CLOCK_BOOTTIME
        clock_gettime(CLOCK_BOOTTIME, &now);
    #else
        clock_gettime(CLOCK_MONOTONIC, &now);
    #endif
        memcpy(at, s->head, s->head_size);
        at = titan_digits(at + s->head_size, (unsigned long long)getpid(), 1);
        *at++ = ',';
        at = titan_digits(at, (unsigned long long)now.tv_sec, 1);
        *at++ = '.';
        at = titan_digits(at, (unsigned long long)(now.tv_nsec / 1000), 6);
        *at++ = ']';
        *at++ = '\\n';
        while (write(s->note, line, (size_t)(at - line)) < 0 && errno == EINTR) {}
    }

    /* In the child. Not inlined: what it keeps on the stack must not overlap the parent's frame. */
    static void __attribute__((noinline)) titan_child(titan_spawn *s) {
        struct sigaction standard;
        struct rlimit limit;
        int number, output, nowhere;

        setsid();               /* cannot fail: a new process leads no group */

        /* Handlers first, then the mask: a handler of the parent must never run here, on the parent's memory. */
        standard.sa_handler = SIG_DFL;
        standard.sa_flags = 0;
        sigemptyset(&standard.sa_mask);
        for (number = 1; number < NSIG; number++)
            sigaction(number, &standard, 0);
        sigprocmask(SIG_SETMASK, &standard.sa_mask, 0);

        /* Opened here and not by the parent: no other child, on its way to its own program, has a copy of it. */
        output = open(s->output, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
        if (output < 0)
            titan_fail(s, TITAN_AT_OUTPUT);
        /* The output first: it may be descriptor 0. */
        if (titan_dup(output, 1) < 0 || titan_dup(output, 2) < 0)
            titan_fail(s, TITAN_AT_START);
        nowhere = open("/dev/null", O_RDONLY);
        if (nowhere < 0 || titan_dup(nowhere, 0) < 0)
            titan_fail(s, TITAN_AT_START);

        if (chdir(s->cwd) < 0)
            titan_fail(s, TITAN_AT_FOLDER);
        if (s->note >= 0)
            titan_note(s);      /* before the limit: it is the program's */
        if (s->file_limit > 0 && getrlimit(RLIMIT_FSIZE, &limit) == 0) {
            if ((rlim_t)s->file_limit < limit.rlim_max)
                limit.rlim_max = (rlim_t)s->file_limit;
            limit.rlim_cur = limit.rlim_max;
            if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
                titan_fail(s, TITAN_AT_START);
        }
        titan_close_from(3);
        execve(s->argv[0], s->argv, s->env);
        titan_fail(s, TITAN_AT_PROGRAM);
    }

    /* 0, or an errno. Runs without the interpreter lock. */
    static int titan_spawn_run(titan_spawn *s) {
        sigset_t all, before;
        s->error = 0;
        s->step = TITAN_AT_START;
        s->pidfd = -1;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        s->pid = vfork();
        if (s->pid == 0)
            titan_child(s);
        if (s->pid < 0)
            s->error = errno;
        pthread_sigmask(SIG_SETMASK, &before, 0);
        if (s->error) {
            if (s->pid > 0)
                while (waitpid(s->pid, 0, 0) < 0 && errno == EINTR) {}
            return s->error;
        }
    #ifdef SYS_pidfd_open
        /* Ours and not yet waited for, so the number is still its own. */
        s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
    #endif
        return 0;
    }
    """
    ctypedef struct titan_spawn:
        char **argv
        char **env
        const char *cwd
        const char *output
        long long file_limit
        int note
        const char *head
        size_t head_size
        int pid
        int pidfd
        int step
    int TITAN_AT_OUTPUT
    int TITAN_AT_FOLDER
    int titan_spawn_run(titan_spawn *s) nogil


cdef char **_strings(tuple items) except NULL:
    """A NULL-ended array of pointers into ``items``, to be freed by the caller."""
    cdef Py_ssize_t index, count = len(items)
    cdef char **array = <char **>malloc((count + 1) * sizeof(char *))
    if array is NULL:
        raise MemoryError()
    try:
        for index in range(count):
            array[index] = _text(items[index])
    except BaseException:
        free(array)
        raise
    array[count] = NULL
    return array


cdef char *_text(bytes item) except NULL:
    cdef char *text = item
    if strlen(text) != <size_t>len(item):
        raise ValueError("embedded null byte")
    return text


def spawn(argv, env, bytes cwd not None, bytes output not None, long long file_limit, note=None):
    """Start a program in a session of its own; see `_spawn.pyi`."""
    cdef titan_spawn request
    cdef tuple arguments = tuple(argv)
    cdef tuple entries = tuple(env)
    cdef bytes head = b""
    cdef int error
    if not arguments:
        raise ValueError("argv is empty")
    request.argv = request.env = NULL
    try:
        request.argv = _strings(arguments)
        request.env = _strings(entries)
        request.cwd = _text(cwd)
        request.output = _text(output)
        request.file_limit = file_limit
        request.note = -1
        if note is not None:
            request.note, head = note
            if len(head) > MAX_NOTE:
                raise ValueError("the note is too long")
        request.head = head
        request.head_size = <size_t>len(head)
        with nogil:
            error = titan_spawn_run(&request)
        if error:
            place = {TITAN_AT_OUTPUT: output, TITAN_AT_FOLDER: cwd}.get(request.step, arguments[0])
            raise OSError(error, os.strerror(error), os.fsdecode(place))
        return request.pid, request.pidfd
    finally:
        free(request.argv)
        free(request.env)
