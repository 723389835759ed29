# cython: language_level=3, boundscheck=False, wraparound=False
"""The heartbeat table, compiled (contract: `_heartbeat.pyi`, twin: `_heartbeat_py.py`).

Knows rows and times, not workers. A beat is O(1), a scan O(rows that were ever in use at once): one pass over two
flat arrays. Two rules that the contract leaves open: `scan` tells what `scan` found, so a row that `suspect` made
suspect is not in it; and `suspect` ends a mute, because a closed connection has nothing left to read and a row that
nobody judges is never lost.
"""

from libc.math cimport isfinite
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef enum:
    FREE, FRESH, SUSPECT, LOST
    MUTED = 4  # added to one of the states above


cdef double finite(double value) except? -1.0:
    if not isfinite(value):
        raise ValueError(f"a time must be finite, not {value}")
    return value


cdef class HeartbeatTable:
    """When each worker was last heard; see `_heartbeat.pyi`. Owns its three arrays of ``room`` rows each."""

    cdef double *times
    cdef uint8_t *states
    cdef Py_ssize_t *unused  # a stack of rows not in use; the one given back last goes out first
    cdef Py_ssize_t rows, room, unused_count

    def __dealloc__(self):
        free(self.times)
        free(self.states)
        free(self.unused)

    def add(self, double now):
        finite(now)
        cdef Py_ssize_t row
        if self.unused_count:
            self.unused_count -= 1
            row = self.unused[self.unused_count]
        else:
            if self.rows == self.room:
                self.widen()
            row = self.rows
            self.rows += 1
        self.times[row] = now
        self.states[row] = FRESH
        return row

    def remove(self, row):
        cdef Py_ssize_t at = self.find(row)
        self.states[at] = FREE
        self.unused[self.unused_count] = at
        self.unused_count += 1

    def beat(self, row, double now):
        finite(now)
        cdef Py_ssize_t at = self.find(row)
        cdef uint8_t state = self.states[at]
        if now > self.times[at]:
            self.times[at] = now
        self.states[at] = state & MUTED | FRESH
        return state & ~MUTED != FRESH

    def mute(self, row, bint muted):
        cdef Py_ssize_t at = self.find(row)
        if muted:
            self.states[at] |= MUTED
        elif self.states[at] & MUTED:
            self.states[at] = FRESH

    def suspect(self, row):
        cdef Py_ssize_t at = self.find(row)
        self.states[at] &= ~MUTED
        if self.states[at] != FRESH:
            return False
        self.states[at] = SUSPECT
        return True

    def last(self, row):
        return self.times[self.find(row)]

    def scan(self, double now, double suspect_after, double lost_after):
        cdef list suspects = [], lost = []
        cdef Py_ssize_t row = 0
        cdef double silence
        while True:
            row = self.next_change(row, now, suspect_after, lost_after)
            if row == self.rows:
                return suspects, lost
            silence = now - self.times[row]
            if silence >= lost_after:
                self.states[row] = LOST
                lost.append(row)
            else:
                self.states[row] = SUSPECT
                suspects.append(row)
            row += 1

    def shift(self, double seconds):
        cdef Py_ssize_t row
        finite(seconds)
        if seconds < 0:
            raise ValueError(f"times are shifted forward, not by {seconds}")
        for row in range(self.rows):
            self.times[row] += seconds

    def __len__(self):
        return self.rows - self.unused_count

    cdef Py_ssize_t next_change(
        self, Py_ssize_t row, double now, double suspect_after, double lost_after
    ) noexcept nogil:
        """The next row whose state this scan changes, or the number of rows."""
        cdef double silence
        while row < self.rows:
            silence = now - self.times[row]
            if silence >= lost_after:
                if self.states[row] == FRESH or self.states[row] == SUSPECT:
                    break
            elif silence >= suspect_after and self.states[row] == FRESH:
                break
            row += 1
        return row

    cdef Py_ssize_t find(self, object row) except -1:
        cdef int overflow = 0
        cdef long long at = PyLong_AsLongLongAndOverflow(row, &overflow)
        if overflow or not 0 <= at < self.rows or self.states[at] == FREE:
            raise KeyError(f"row {row} is not in use")
        return <Py_ssize_t>at

    cdef int widen(self) except -1:
        """Twice the room. Each array is kept as soon as it has moved; ``room`` follows when all of them have."""
        cdef Py_ssize_t room = 2 * self.room if self.room else 64
        cdef void *moved = realloc(self.times, room * sizeof(double))
        if moved != NULL:
            self.times = <double *>moved
            moved = realloc(self.states, room * sizeof(uint8_t))
        if moved != NULL:
            self.states = <uint8_t *>moved
            moved = realloc(self.unused, room * sizeof(Py_ssize_t))
        if moved == NULL:
            raise MemoryError
        self.unused = <Py_ssize_t *>moved
        self.room = room
        return 0
