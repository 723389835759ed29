# cython: language_level=3, boundscheck=False, wraparound=False
"""The frame codec, compiled (contract: `_proto.pyi`, twin: `_proto_py.py`).

Sans-IO: bytes in, tuples out. Knows the shapes of `_layout` and nothing of what a message means. Cutting frames is
amortised O(bytes): each byte is copied once, into the message it belongs to. Packing and unpacking are O(records),
column by column, so that the kind of a field is looked at once and not once per record.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from operator import index

from titan_fast import _layout
from titan_fast.errors import BadFrame, BadRecords, FrameTooLarge, WrongVersion

cdef extern from "Python.h":
    bint PyFloat_CheckExact(object value)
    double PyFloat_AS_DOUBLE(object value)
    double PyFloat_AsDouble(object value) except? -1.0
    bint PyLong_Check(object value)
    PyObject **PySequence_Fast_ITEMS(object sequence)

cdef enum:
    MAX_FIELDS = 16
    FRONT = 12  # header and request id: what is known of a frame before its message

cdef uint8_t VERSION = _layout.VERSION
cdef uint8_t UNKNOWN_FLAGS = ~_layout.KNOWN_FLAGS & 0xFF
cdef uint32_t HEADER_SIZE = _layout.HEADER_SIZE
cdef uint32_t REQUEST_ID_SIZE = _layout.REQUEST_ID_SIZE
cdef uint32_t PROLOGUE_SIZE = _layout.PROLOGUE_SIZE
cdef uint32_t MAX_BODY = _layout.MAX_BODY

assert FRONT == HEADER_SIZE + REQUEST_ID_SIZE


# ---------------------------------------------------------------- big-endian numbers


cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define titan_big16 __builtin_bswap16
    #define titan_big32 __builtin_bswap32
    #define titan_big64 __builtin_bswap64
    #else
    #define titan_big16(number) (number)
    #define titan_big32(number) (number)
    #define titan_big64(number) (number)
    #endif
    """
    uint16_t titan_big16(uint16_t number) noexcept nogil
    uint32_t titan_big32(uint32_t number) noexcept nogil
    uint64_t titan_big64(uint64_t number) noexcept nogil


cdef inline uint16_t load16(const uint8_t *at) noexcept nogil:
    cdef uint16_t number
    memcpy(&number, at, sizeof(number))
    return titan_big16(number)


cdef inline uint32_t load32(const uint8_t *at) noexcept nogil:
    cdef uint32_t number
    memcpy(&number, at, sizeof(number))
    return titan_big32(number)


cdef inline uint64_t load64(const uint8_t *at) noexcept nogil:
    cdef uint64_t number
    memcpy(&number, at, sizeof(number))
    return titan_big64(number)


cdef inline void store16(uint8_t *at, uint16_t number) noexcept nogil:
    number = titan_big16(number)
    memcpy(at, &number, sizeof(number))


cdef inline void store32(uint8_t *at, uint32_t number) noexcept nogil:
    number = titan_big32(number)
    memcpy(at, &number, sizeof(number))


cdef inline void store64(uint8_t *at, uint64_t number) noexcept nogil:
    number = titan_big64(number)
    memcpy(at, &number, sizeof(number))


cdef inline void store(uint8_t *at, uint64_t number, int size) noexcept nogil:
    if size == 8:
        store64(at, number)
    elif size == 4:
        store32(at, <uint32_t>number)
    elif size == 2:
        store16(at, <uint16_t>number)
    else:
        at[0] = <uint8_t>number


# ---------------------------------------------------------------- frames


cdef class Framer:
    """Cuts a byte stream into frames; see `_proto.pyi`.

    An unfinished frame is its ``front`` until that is whole, then ``message`` too, of which ``filled`` bytes are
    there. The framer owns ``message`` and hands it out when it is full; nobody else has seen it before.
    """

    cdef uint32_t limit
    cdef uint8_t front[FRONT]
    cdef uint32_t front_size
    cdef bytes message
    cdef Py_ssize_t filled
    cdef readonly object error

    def __init__(self, max_body=MAX_BODY):
        self.max_body = max_body

    @property
    def max_body(self):
        return self.limit

    @max_body.setter
    def max_body(self, value):
        self.limit = <uint32_t>fit("max_body", value, c"I")

    def pending(self):
        """Bytes held of an unfinished frame."""
        return self.front_size + self.filled

    def feed(self, data):
        """Take bytes, return the frames they complete; see `_proto.pyi`."""
        cdef list frames = []
        cdef Py_buffer view
        PyObject_GetBuffer(data if type(data) is bytes else memoryview(data).cast("B"), &view, PyBUF_SIMPLE)
        try:
            if self.error is None:
                self.cut(<const uint8_t *>view.buf, view.len, frames)
        finally:
            PyBuffer_Release(&view)
        return frames

    cdef int cut(self, const uint8_t *at, Py_ssize_t left, list frames) except -1:
        cdef Py_ssize_t size, taken
        cdef bytes message
        while left:
            if self.message is None:
                taken = self.fill_front(at, left)
                if self.error is not None:
                    return 0
                at += taken
                left -= taken
                if self.front_size < FRONT:
                    return 0
                size = load32(self.front + 4) - REQUEST_ID_SIZE
                if size <= left:
                    message = PyBytes_FromStringAndSize(<const char *>at, size)
                    at += size
                    left -= size
                    self.hand_out(message, frames)
                    continue
                self.message = PyBytes_FromStringAndSize(NULL, size)
            size = len(self.message)
            taken = min(size - self.filled, left)
            memcpy(PyBytes_AS_STRING(self.message) + self.filled, at, taken)
            self.filled += taken
            at += taken
            left -= taken
            if self.filled == size:
                message = self.message
                self.message = None
                self.filled = 0
                self.hand_out(message, frames)
        return 0

    cdef Py_ssize_t fill_front(self, const uint8_t *at, Py_ssize_t left) except -1:
        """Complete the front as far as the bytes go, judging the header when it is whole; returns bytes taken."""
        cdef Py_ssize_t taken = min(<Py_ssize_t>(FRONT - self.front_size), left)
        cdef bint was_judged = self.front_size >= HEADER_SIZE
        memcpy(self.front + self.front_size, at, taken)
        self.front_size += <uint32_t>taken
        if self.front_size >= HEADER_SIZE and not was_judged:
            self.error = self.judge()
            if self.error is not None:
                self.front_size = 0
        return taken

    cdef int hand_out(self, bytes message, list frames) except -1:
        frames.append((self.front[1], self.front[2], load32(self.front + HEADER_SIZE), message))
        self.front_size = 0
        return 0

    cdef object judge(self):
        cdef uint32_t length = load32(self.front + 4)
        if self.front[0] != VERSION:
            return WrongVersion(self.front[0])
        if self.front[3]:
            return BadFrame(f"the reserved byte of a frame header is {self.front[3]}, it must be 0")
        if self.front[2] & UNKNOWN_FLAGS:
            return BadFrame(f"frame flags {<object>self.front[2]:#04x} are not all known")
        if length < REQUEST_ID_SIZE:
            return BadFrame(f"frame body of {length} bytes, too short for its request id")
        if length > self.limit:
            return FrameTooLarge(length, self.limit)
        return None


def frame(opcode, flags, request_id, message):
    """One whole frame; see `_proto.pyi`."""
    require_bytes("message", message)
    cdef uint8_t front[FRONT]
    front[0] = VERSION
    front[1] = <uint8_t>fit("opcode", opcode, c"B")
    front[2] = <uint8_t>fit("flags", flags, c"B")
    front[3] = 0
    store32(front + HEADER_SIZE, <uint32_t>fit("request id", request_id, c"I"))
    cdef Py_ssize_t size = len(<bytes>message)
    if size + REQUEST_ID_SIZE > MAX_BODY:
        raise FrameTooLarge(size + REQUEST_ID_SIZE, MAX_BODY)
    store32(front + 4, <uint32_t>size + REQUEST_ID_SIZE)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, FRONT + size)
    cdef char *at = PyBytes_AS_STRING(whole)
    memcpy(at, front, FRONT)
    memcpy(at + FRONT, PyBytes_AS_STRING(message), size)
    return whole


# ---------------------------------------------------------------- hot messages


cdef class Record:
    """One layout: its fields, and where in a packed record each of them lies."""

    cdef int number
    cdef str name
    cdef tuple names
    cdef int fields
    cdef char codes[MAX_FIELDS]
    cdef int offsets[MAX_FIELDS]
    cdef int size

    def __cinit__(self, number, name, fields):
        assert len(fields) <= MAX_FIELDS
        self.number = number
        self.name = name
        self.names = tuple([field for field, _ in fields])
        self.fields = len(fields)
        for place, (_, code) in enumerate(fields):
            self.codes[place] = ord(code)
            self.offsets[place] = self.size
            self.size += SIZES[code]


SIZES = {"Q": 8, "I": 4, "H": 2, "B": 1, "i": 4, "d": 8}
KINDS = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8", "i": "i32", "d": "f64"}
cdef dict RECORDS = {number: Record(number, name, fields) for number, (name, fields) in _layout.LAYOUTS.items()}


def pack(layout, sequence, columns, tail=b""):
    """A hot message of columns; see `_proto.pyi`."""
    cdef Record record = RECORDS.get(layout)
    if record is None:
        raise ValueError(f"there is no record layout {layout!r}")
    require_bytes("tail", tail)
    cdef uint64_t number = fit("sequence", sequence, c"Q")
    cdef list rows = [column if type(column) is list or type(column) is tuple else list(column) for column in columns]
    if len(rows) != record.fields:
        raise ValueError(f"{record.name} records take {record.fields} columns, not {len(rows)}")
    cdef Py_ssize_t count = len(rows[0])
    cdef int place
    for place in range(record.fields):
        if len(rows[place]) != count:
            raise ValueError(
                f"{record.name}.{record.names[place]} has {len(rows[place])} rows, the column before it {count}"
            )
    fit("number of records", count, c"I")
    cdef Py_ssize_t end = PROLOGUE_SIZE + count * record.size
    cdef bytes message = PyBytes_FromStringAndSize(NULL, end + len(<bytes>tail))
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(message)
    store16(at, <uint16_t>record.number)
    store16(at + 2, <uint16_t>record.size)
    store32(at + 4, <uint32_t>count)
    store64(at + 8, number)
    memcpy(at + end, PyBytes_AS_STRING(tail), len(<bytes>tail))
    at += PROLOGUE_SIZE
    for place in range(record.fields):
        write_column(record, place, rows[place], count, at + record.offsets[place])
    return message


def unpack(message):
    """The columns of a hot message; see `_proto.pyi`."""
    require_bytes("message", message)
    cdef Py_ssize_t length = len(<bytes>message)
    if length < PROLOGUE_SIZE:
        raise BadRecords(f"a hot message of {length} bytes, its prologue takes {PROLOGUE_SIZE}")
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(message)
    cdef Record record = RECORDS.get(load16(at))
    if record is None:
        raise BadRecords(f"there is no record layout {load16(at)}")
    cdef uint32_t size = load16(at + 2)
    cdef uint32_t count = load32(at + 4)
    if size < <uint32_t>record.size:
        raise BadRecords(f"{record.name} records of {size} bytes, their fields take {record.size}")
    cdef int64_t end = PROLOGUE_SIZE + <int64_t>count * size
    if end > length:
        raise BadRecords(f"{count} {record.name} records of {size} bytes in a message of {length} bytes")
    cdef uint64_t sequence = load64(at + 8)
    cdef list columns = []
    cdef int place
    for place in range(record.fields):
        columns.append(read_column(record.codes[place], at + PROLOGUE_SIZE + record.offsets[place], count, size))
    return record.number, sequence, tuple(columns), PyBytes_FromStringAndSize(<const char *>at + end, length - end)


cdef int write_column(Record record, int place, object column, Py_ssize_t count, uint8_t *at) except -1:
    """One field of every record. ``column`` is a list or tuple, the caller's own as long as none of their code runs."""
    cdef char code = record.codes[place]
    cdef Py_ssize_t row
    cdef uint64_t bits
    if len(column) != count:
        raise ValueError("a column changed its length while it was packed")
    try:
        if write_plain(code, PySequence_Fast_ITEMS(column), count, at, record.size):
            return 0
    except OverflowError:
        pass
    for row, value in enumerate(list(column)):
        if not to_bits(value, code, &bits):
            raise OverflowError(f"{record.name}.{record.names[place]} of record {row} does not fit {kind(code)}")
        store(at + row * record.size, bits, width(code))
    return 0


cdef bint write_plain(char code, PyObject **items, Py_ssize_t count, uint8_t *at, int step) except -1:
    """`write_column` for values that can be read without running anybody's code; False when there are others."""
    cdef int size = width(code)
    cdef Py_ssize_t row
    cdef uint64_t bits
    cdef int64_t number
    cdef double real
    for row in range(count):
        if row and items[row] == items[row - 1]:
            pass  # the same object has the same bits: most columns repeat
        elif code == c"d":
            if not PyFloat_CheckExact(<object>items[row]):
                return False
            real = PyFloat_AS_DOUBLE(<object>items[row])
            memcpy(&bits, &real, sizeof(real))
        elif not PyLong_Check(<object>items[row]):
            return False
        elif code == c"i":
            number = <int64_t><object>items[row]
            if number != <int32_t>number:
                return False
            bits = <uint64_t>number
        else:
            bits = <uint64_t><object>items[row]
            if size < 8 and bits >> 8 * size:
                return False
        store(at, bits, size)
        at += step
    return True


cdef list read_column(char code, const uint8_t *at, Py_ssize_t count, Py_ssize_t size):
    """One field of every record. A value equal to the one above it is the same object: most columns repeat."""
    cdef list column = PyList_New(count)
    cdef object value = None
    cdef uint64_t bits, above = 0
    cdef double real
    cdef Py_ssize_t row
    for row in range(count):
        if code == c"Q" or code == c"d":
            bits = load64(at)
        elif code == c"I" or code == c"i":
            bits = load32(at)
        elif code == c"H":
            bits = load16(at)
        else:
            bits = at[0]
        if bits != above or row == 0:
            above = bits
            if code == c"d":
                memcpy(&real, &bits, sizeof(real))
                value = real
            elif code == c"i":
                value = <int32_t>bits
            else:
                value = bits
        Py_INCREF(value)  # PyList_SET_ITEM takes the reference over
        PyList_SET_ITEM(column, row, value)
        at += size
    return column


# ---------------------------------------------------------------- numbers of the caller


cdef inline int width(char code) noexcept nogil:
    return 8 if code == c"Q" or code == c"d" else 4 if code == c"I" or code == c"i" else 2 if code == c"H" else 1


cdef bint to_bits(object value, char code, uint64_t *bits) except -1:
    """Any number as the field holds it; False when it does not fit."""
    cdef double real
    if code != c"d":
        value = index(value)
    try:
        if code == c"d":
            real = PyFloat_AsDouble(value)
            memcpy(bits, &real, sizeof(real))
            return True
        if code == c"i":
            bits[0] = <uint64_t><int64_t>value
            return INT32_MIN <= value <= INT32_MAX
        bits[0] = <uint64_t>value
        return width(code) == 8 or bits[0] >> 8 * width(code) == 0
    except OverflowError:
        return False


cdef uint64_t fit(str name, object value, char code) except? 1:
    """The value as a number, if it is one and the field can hold it."""
    cdef uint64_t bits
    if not to_bits(value, code, &bits):
        raise OverflowError(f"{name} does not fit {kind(code)}")
    return bits


cdef str kind(char code):
    return KINDS[chr(code)]


cdef int require_bytes(str name, object value) except -1:
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    return 0
