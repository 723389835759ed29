# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The ready queue and the timers, compiled (contract: `_heap.pyi`, twin: `_heap_py.py`, which tells the theory).

Knows classes, views and runs by number only. push and take are O(log run queues + log classes of a view), whatever
the number of tasks. Run queues and links know their place in their heap, so a heap holds each of them once and never
grows beyond them. A link keeps the key its class had when somebody last looked: true or too good, never too bad.

Everything below is plain C memory: `ReadyQueue` owns every class, view, run queue and level, and each of those the
buffers in it. Memory is asked for before anything is changed, so that what changes cannot fail half way.
"""

from cpython.long cimport PyLong_AsUnsignedLongLong
from libc.math cimport isfinite, isnan
from libc.stdint cimport INT32_MAX, INT32_MIN, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

from operator import index as to_index

from titan_fast import _layout

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef double QUANTUM = _layout.QUANTUM
cdef double DEFAULT_COST = _layout.DEFAULT_COST
cdef double CHEAPEST = QUANTUM / 1000
cdef uint64_t U64_MAX = 0xFFFFFFFFFFFFFFFF
cdef uint64_t U32_MAX = 0xFFFFFFFF

cdef enum:
    SMALL = 8  # entries of a buffer that an empty run queue may keep


# ---------------------------------------------------------------- numbers of the caller


cdef uint64_t unsigned(str name, object value, uint64_t most) except? 1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow == 0 and number >= 0 and <uint64_t>number <= most:
        return <uint64_t>number
    if overflow > 0 and most == U64_MAX:
        try:
            return PyLong_AsUnsignedLongLong(to_index(value))
        except OverflowError:
            pass
    raise OverflowError(f"{name} must be between 0 and {most}")


cdef int32_t priority_of(object value) except? -1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not INT32_MIN <= number <= INT32_MAX:
        raise OverflowError(f"priority must be between {INT32_MIN} and {INT32_MAX}")
    return <int32_t>number


cdef int check_end(uint32_t first, uint32_t count) except -1:
    if <int64_t>first + count - 1 > <int64_t>U32_MAX:
        raise OverflowError(f"{count} tasks from {first} on go beyond the last index, {U32_MAX}")
    return 0


# ---------------------------------------------------------------- a map from two numbers to one that is not 0


cdef struct Slot:
    uint64_t a
    uint64_t b
    uint64_t value  # 0: nothing here


cdef struct Map:
    Slot *slots
    size_t room  # a power of two, more than half of it free
    size_t used


cdef inline size_t home_of(const Map *map, uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t mixed = (a ^ b * <uint64_t>0x9E3779B97F4A7C15) * <uint64_t>0xD6E8FEB86659FD93
    mixed = (mixed ^ mixed >> 32) * <uint64_t>0xD6E8FEB86659FD93
    return <size_t>(mixed ^ mixed >> 32) & (map.room - 1)


cdef inline Slot *slot_of(const Map *map, uint64_t a, uint64_t b) noexcept nogil:
    """Where the key is, or would be. The map must have room."""
    cdef size_t at = home_of(map, a, b)
    while map.slots[at].value and (map.slots[at].a != a or map.slots[at].b != b):
        at = (at + 1) & (map.room - 1)
    return &map.slots[at]


cdef inline uint64_t map_get(const Map *map, uint64_t a, uint64_t b) noexcept nogil:
    return slot_of(map, a, b).value if map.used else 0


cdef int map_reserve(Map *map, size_t more) except -1:
    """Make room for so many new keys."""
    cdef Map wider
    cdef size_t at
    if 2 * (map.used + more) < map.room:
        return 0
    wider.room = 16
    while wider.room <= 2 * (map.used + more):
        wider.room *= 2
    wider.slots = <Slot *>calloc(wider.room, sizeof(Slot))
    if wider.slots == NULL:
        raise MemoryError
    wider.used = map.used
    for at in range(map.room):
        if map.slots[at].value:
            slot_of(&wider, map.slots[at].a, map.slots[at].b)[0] = map.slots[at]
    free(map.slots)
    map[0] = wider
    return 0


cdef void map_put(Map *map, uint64_t a, uint64_t b, uint64_t value) noexcept nogil:
    """After `map_reserve`."""
    cdef Slot *slot = slot_of(map, a, b)
    map.used += slot.value == 0
    slot.a, slot.b, slot.value = a, b, value


cdef void map_remove(Map *map, uint64_t a, uint64_t b) noexcept nogil:
    """What was pushed on by the removed key moves back, so that there are no graves to step over."""
    cdef size_t hole, at, mask = map.room - 1
    if map.used == 0:
        return
    hole = at = slot_of(map, a, b) - map.slots
    if map.slots[hole].value == 0:
        return
    map.used -= 1
    while True:
        at = (at + 1) & mask
        if map.slots[at].value == 0:
            break
        if ((at - home_of(map, map.slots[at].a, map.slots[at].b)) & mask) >= ((at - hole) & mask):
            map.slots[hole] = map.slots[at]
            hole = at
    map.slots[hole].value = 0


cdef void map_clear(Map *map) noexcept nogil:
    free(map.slots)
    map.slots = NULL
    map.room = map.used = 0


# ---------------------------------------------------------------- a heap of nodes that know their place


cdef struct Node:
    double vtime
    uint64_t run
    int32_t priority
    uint32_t cls
    Py_ssize_t place  # -1: in no heap


cdef struct Heap:
    Node **nodes
    Py_ssize_t size
    Py_ssize_t room


cdef inline bint is_before(const Node *a, const Node *b) noexcept nogil:
    if a.priority != b.priority:
        return a.priority > b.priority
    if a.vtime != b.vtime:
        return a.vtime < b.vtime
    if a.run != b.run:
        return a.run < b.run
    return a.cls < b.cls


cdef void rise(Heap *heap, Node *node) noexcept nogil:
    cdef Py_ssize_t at = node.place, parent
    while at > 0:
        parent = (at - 1) >> 1
        if not is_before(node, heap.nodes[parent]):
            break
        heap.nodes[at] = heap.nodes[parent]
        heap.nodes[at].place = at
        at = parent
    heap.nodes[at] = node
    node.place = at


cdef void sink(Heap *heap, Node *node) noexcept nogil:
    cdef Py_ssize_t at = node.place, child
    while True:
        child = 2 * at + 1
        if child >= heap.size:
            break
        if child + 1 < heap.size and is_before(heap.nodes[child + 1], heap.nodes[child]):
            child += 1
        if not is_before(heap.nodes[child], node):
            break
        heap.nodes[at] = heap.nodes[child]
        heap.nodes[at].place = at
        at = child
    heap.nodes[at] = node
    node.place = at


cdef void heap_push(Heap *heap, Node *node) noexcept nogil:
    """After `heap_reserve`."""
    node.place = heap.size
    heap.size += 1
    rise(heap, node)


cdef void heap_remove(Heap *heap, Node *node) noexcept nogil:
    cdef Node *last
    heap.size -= 1
    last = heap.nodes[heap.size]
    if last != node:
        last.place = node.place
        heap.nodes[last.place] = last
        rise(heap, last)
        sink(heap, last)
    node.place = -1


cdef int heap_reserve(Heap *heap, Py_ssize_t room) except -1:
    if room > heap.room:
        heap.nodes = <Node **>widen(heap.nodes, &heap.room, room, sizeof(Node *))
    return 0


cdef void *widen(void *items, Py_ssize_t *room, Py_ssize_t wanted, size_t size) except NULL:
    """A buffer of twice the room, or more; the old one is given back."""
    cdef Py_ssize_t wider = max(2 * room[0], wanted, 4)
    cdef void *moved = realloc(items, wider * size)
    if moved == NULL:
        raise MemoryError
    room[0] = wider
    return moved


# ---------------------------------------------------------------- a heap of pairs of numbers


cdef struct Pair:
    uint64_t a
    uint64_t b


cdef struct Pairs:
    Pair *items
    Py_ssize_t size
    Py_ssize_t room


cdef inline bint is_less(const Pair *x, const Pair *y) noexcept nogil:
    return x.a < y.a or (x.a == y.a and x.b < y.b)


cdef int pairs_reserve(Pairs *pairs) except -1:
    if pairs.size == pairs.room:
        pairs.items = <Pair *>widen(pairs.items, &pairs.room, pairs.size + 1, sizeof(Pair))
    return 0


cdef void pairs_push(Pairs *pairs, uint64_t a, uint64_t b) noexcept nogil:
    """After `pairs_reserve`."""
    cdef Pair pair = [a, b]
    cdef Py_ssize_t at = pairs.size, parent
    pairs.size += 1
    while at > 0:
        parent = (at - 1) >> 1
        if not is_less(&pair, &pairs.items[parent]):
            break
        pairs.items[at] = pairs.items[parent]
        at = parent
    pairs.items[at] = pair


cdef void pairs_sink(Pairs *pairs, Py_ssize_t at) noexcept nogil:
    cdef Pair pair = pairs.items[at]
    cdef Py_ssize_t child
    while True:
        child = 2 * at + 1
        if child >= pairs.size:
            break
        if child + 1 < pairs.size and is_less(&pairs.items[child + 1], &pairs.items[child]):
            child += 1
        if not is_less(&pairs.items[child], &pair):
            break
        pairs.items[at] = pairs.items[child]
        at = child
    pairs.items[at] = pair


cdef void pairs_pop(Pairs *pairs) noexcept nogil:
    pairs.size -= 1
    if pairs.size:
        pairs.items[0] = pairs.items[pairs.size]
        pairs_sink(pairs, 0)


cdef void pairs_order(Pairs *pairs) noexcept nogil:
    """Make a heap of pairs in any order."""
    cdef Py_ssize_t at
    for at in range(pairs.size // 2 - 1, -1, -1):
        pairs_sink(pairs, at)


cdef void pairs_clear(Pairs *pairs) noexcept nogil:
    free(pairs.items)
    pairs.items = NULL
    pairs.size = pairs.room = 0


# ---------------------------------------------------------------- run queues


cdef struct Range:
    uint64_t epoch
    uint32_t spec
    uint32_t first
    uint32_t last


cdef struct Level:
    double clock  # virtual time of the last take when it began
    uint32_t queues
    uint32_t waiting  # run queues with something in them


cdef struct RunQueue:
    Node node  # first, so that a node of a class's heap is its run queue
    Class *cls
    Level *level
    RunQueue *sibling  # the next run queue of the same run
    double cost
    Pairs singles  # (index << 32 | spec, epoch)
    Range *ranges  # a ring of ``room`` places, a power of two
    size_t front
    size_t size
    size_t room
    int64_t held  # tasks that are here
    int64_t dead  # how many of them are discarded
    uint64_t epoch
    Map tombs  # (index, 0): epoch; what was pushed before it is dead


cdef struct Class:
    uint32_t number
    int64_t ready
    Py_ssize_t queues
    Heap heap  # of RunQueue
    Link **links
    Py_ssize_t size
    Py_ssize_t room


cdef struct Link:
    Node node  # first, so that a node of a view's heap is its link
    Class *cls
    View *view


cdef struct View:
    uint32_t number
    Py_ssize_t links
    Heap heap  # of Link


cdef inline Range *range_at(RunQueue *queue, size_t place) noexcept nogil:
    return &queue.ranges[(queue.front + place) & (queue.room - 1)]


cdef inline void drop_range(RunQueue *queue) noexcept nogil:
    queue.front = (queue.front + 1) & (queue.room - 1)
    queue.size -= 1


cdef int reserve_range(RunQueue *queue) except -1:
    cdef size_t room, place
    cdef Range *wider
    if queue.size < queue.room:
        return 0
    room = 2 * queue.room if queue.room else 2
    wider = <Range *>malloc(room * sizeof(Range))
    if wider == NULL:
        raise MemoryError
    for place in range(queue.size):
        wider[place] = range_at(queue, place)[0]
    adopt_ranges(queue, wider, queue.size, room)
    return 0


cdef void adopt_ranges(RunQueue *queue, Range *ranges, size_t size, size_t room) noexcept nogil:
    free(queue.ranges)
    queue.ranges = ranges
    queue.front, queue.size, queue.room = 0, size, room


cdef void append(RunQueue *queue, uint32_t spec, uint32_t first, uint32_t last) noexcept nogil:
    """After `reserve_range`."""
    cdef Range *end
    if queue.size:
        end = range_at(queue, queue.size - 1)
        if <uint64_t>end.last + 1 == first and end.spec == spec and end.epoch == queue.epoch:
            end.last = last
            return
    end = range_at(queue, queue.size)
    end.spec, end.first, end.last, end.epoch = spec, first, last, queue.epoch
    queue.size += 1


cdef inline uint32_t single_index(const Pair *single) noexcept nogil:
    return <uint32_t>(single.a >> 32)


cdef inline uint32_t single_spec(const Pair *single) noexcept nogil:
    return <uint32_t>single.a


cdef inline bint is_dead(RunQueue *queue, uint32_t index, uint64_t epoch) noexcept nogil:
    return map_get(&queue.tombs, index, 0) > epoch


cdef void dropped(RunQueue *queue) noexcept nogil:
    queue.held -= 1
    queue.dead -= 1
    if queue.dead == 0:
        map_clear(&queue.tombs)


cdef void drop_dead_singles(RunQueue *queue) noexcept nogil:
    while queue.dead and queue.singles.size:
        if not is_dead(queue, single_index(queue.singles.items), queue.singles.items.b):
            return
        pairs_pop(&queue.singles)
        dropped(queue)


cdef void drop_dead_of_ranges(RunQueue *queue) noexcept nogil:
    cdef Range *front
    while queue.dead:
        front = range_at(queue, 0)
        if not is_dead(queue, front.first, front.epoch):
            return
        if front.first == front.last:
            drop_range(queue)
        else:
            front.first += 1
        dropped(queue)


cdef uint32_t last_alive(RunQueue *queue, const Range *part, uint32_t last) noexcept nogil:
    """The end of the living stretch at the front of ``part``, ``last`` at most."""
    cdef uint32_t index = part.first
    while index < last and not is_dead(queue, index + 1, part.epoch):
        index += 1
    return index


cdef void find_front(RunQueue *queue, uint32_t *spec, uint32_t *first) noexcept nogil:
    """The first living task; the queue must have one."""
    drop_dead_singles(queue)
    if queue.singles.size:
        spec[0], first[0] = single_spec(queue.singles.items), single_index(queue.singles.items)
        return
    drop_dead_of_ranges(queue)
    spec[0], first[0] = range_at(queue, 0).spec, range_at(queue, 0).first


cdef uint32_t take_front(RunQueue *queue, int64_t most, uint32_t spec, uint32_t first) noexcept nogil:
    """Remove the longest stretch of one spec at the front, ``most`` tasks at most; returns how many."""
    cdef int64_t count = 0
    cdef Range *front
    cdef uint32_t last
    while queue.singles.size and count < most and queue.singles.items.a == ((first + <uint64_t>count) << 32 | spec):
        pairs_pop(&queue.singles)
        queue.held -= 1
        count += 1
        drop_dead_singles(queue)
    while queue.singles.size == 0 and count < most and queue.held > queue.dead:
        drop_dead_of_ranges(queue)
        front = range_at(queue, 0)
        if front.first != first + count or front.spec != spec:
            break
        last = <uint32_t>min(<int64_t>front.last, front.first + most - count - 1)
        if queue.dead:
            last = last_alive(queue, front, last)
        count += last - front.first + 1
        queue.held -= last - front.first + 1
        if last == front.last:
            drop_range(queue)
        else:
            front.first = last + 1
    return <uint32_t>count


cdef int bury(RunQueue *queue, uint32_t first, uint32_t count) except -1:
    """A tombstone for each index."""
    cdef uint32_t offset
    map_reserve(&queue.tombs, count)
    queue.epoch += 1
    for offset in range(count):
        map_put(&queue.tombs, first + offset, 0, queue.epoch)
    queue.dead += count
    return 0


cdef void compact(RunQueue *queue) noexcept nogil:
    """Remove the dead for good. Counts what is left, so a tombstone that met nothing is forgiven too.

    Every dead task may cut a range in two; without the memory for that the tombstones stay where they are.
    """
    cdef size_t room = 2, place, size = 0
    cdef Range *kept
    cdef Range *part
    cdef Pair *single
    cdef int64_t index, start, held = 0
    while room < queue.size + <size_t>queue.dead:
        room *= 2
    kept = <Range *>malloc(room * sizeof(Range))
    if kept == NULL:
        return
    for place in range(<size_t>queue.singles.size):
        single = &queue.singles.items[place]
        if not is_dead(queue, single_index(single), single.b):
            queue.singles.items[held] = single[0]
            held += 1
    queue.singles.size = held
    pairs_order(&queue.singles)
    for place in range(queue.size):
        part = range_at(queue, place)
        start = part.first
        for index in range(part.first, <int64_t>part.last + 2):
            if index > part.last or is_dead(queue, <uint32_t>index, part.epoch):
                if start < index:
                    kept[size] = part[0]
                    kept[size].first, kept[size].last = <uint32_t>start, <uint32_t>(index - 1)
                    size += 1
                    held += index - start
                start = index + 1
    adopt_ranges(queue, kept, size, room)
    map_clear(&queue.tombs)
    queue.dead = 0
    queue.held = held


cdef void empty(RunQueue *queue) noexcept nogil:
    """Nothing is held from now on; large buffers are given back, small ones wait for the next task."""
    queue.singles.size = 0
    if queue.singles.room > SMALL:
        pairs_clear(&queue.singles)
    queue.front = queue.size = 0
    if queue.room > SMALL:
        adopt_ranges(queue, NULL, 0, 0)
    map_clear(&queue.tombs)
    queue.held = queue.dead = 0


cdef void free_queue(RunQueue *queue) noexcept nogil:
    pairs_clear(&queue.singles)
    free(queue.ranges)
    map_clear(&queue.tombs)
    free(queue)


# ---------------------------------------------------------------- classes and views


cdef void promise(Class *cls, Link *link) noexcept nogil:
    """List the head of a class in a view, unless its entry there already promises as much."""
    cdef Node *head = cls.heap.nodes[0]
    if link.node.place < 0:
        copy_key(&link.node, head)
        heap_push(&link.view.heap, &link.node)
    elif is_before(head, &link.node):
        copy_key(&link.node, head)
        rise(&link.view.heap, &link.node)


cdef inline void copy_key(Node *to, const Node *source) noexcept nogil:
    to.priority, to.vtime, to.run = source.priority, source.vtime, source.run


cdef RunQueue *best_of(View *view) noexcept nogil:
    """The run queue that this view would serve next; links that promised too much are put right on the way."""
    cdef Link *link
    cdef Node *head
    while view.heap.size:
        link = <Link *>view.heap.nodes[0]
        if link.cls.heap.size == 0:
            heap_remove(&view.heap, &link.node)
            continue
        head = link.cls.heap.nodes[0]
        if head.vtime == link.node.vtime and head.run == link.node.run and head.priority == link.node.priority:
            return <RunQueue *>head
        copy_key(&link.node, head)
        sink(&view.heap, &link.node)
    return NULL


cdef inline uint64_t queue_key(uint32_t cls, int32_t priority) noexcept nogil:
    return <uint64_t>cls << 32 | <uint32_t>priority


cdef union Clock:
    double time
    uint64_t bits


cdef class ReadyQueue:
    """Tasks that could start now, by class, priority and fair share; see `_heap.pyi`."""

    cdef Class **classes
    cdef Py_ssize_t class_count, class_room
    cdef View **views
    cdef Py_ssize_t view_count, view_room
    cdef Map queues  # (run, class and priority): RunQueue *
    cdef Map runs  # (run, 0): RunQueue *, the first of a chain of siblings
    cdef Map levels  # (class, priority): Level *
    cdef Map clocks  # (view, priority): bits of the virtual time of the last take when it began; 0.0 is not kept
    cdef Map priorities  # (priority, 0): its run queues
    cdef int64_t size

    def __dealloc__(self):
        cdef Py_ssize_t number, place
        cdef size_t at
        for at in range(self.queues.room):
            if self.queues.slots[at].value:
                free_queue(<RunQueue *><size_t>self.queues.slots[at].value)
        for at in range(self.levels.room):
            free(<Level *><size_t>self.levels.slots[at].value)
        for number in range(self.class_count):
            for place in range(self.classes[number].size):
                free(self.classes[number].links[place])
            free(self.classes[number].links)
            free(self.classes[number].heap.nodes)
            free(self.classes[number])
        for number in range(self.view_count):
            free(self.views[number].heap.nodes)
            free(self.views[number])
        free(self.classes)
        free(self.views)
        map_clear(&self.queues)
        map_clear(&self.runs)
        map_clear(&self.levels)
        map_clear(&self.clocks)
        map_clear(&self.priorities)

    def add_class(self):
        if self.class_count == self.class_room:
            self.classes = <Class **>widen(self.classes, &self.class_room, self.class_count + 1, sizeof(Class *))
        cdef Class *cls = <Class *>calloc(1, sizeof(Class))
        if cls == NULL:
            raise MemoryError
        cls.number = <uint32_t>self.class_count
        self.classes[self.class_count] = cls
        self.class_count += 1
        return cls.number

    def add_view(self):
        if self.view_count == self.view_room:
            self.views = <View **>widen(self.views, &self.view_room, self.view_count + 1, sizeof(View *))
        cdef View *view = <View *>calloc(1, sizeof(View))
        if view == NULL:
            raise MemoryError
        view.number = <uint32_t>self.view_count
        self.views[self.view_count] = view
        self.view_count += 1
        return view.number

    def link(self, view, cls):
        cdef View *viewed = self.view_of(view)
        cdef Class *served = self.class_of(cls)
        cdef Py_ssize_t place
        for place in range(served.size):
            if served.links[place].view == viewed:
                return
        heap_reserve(&viewed.heap, viewed.links + 1)
        if served.size == served.room:
            served.links = <Link **>widen(served.links, &served.room, served.size + 1, sizeof(Link *))
        cdef Link *link = <Link *>calloc(1, sizeof(Link))
        if link == NULL:
            raise MemoryError
        link.cls, link.view = served, viewed
        link.node.cls, link.node.place = served.number, -1
        served.links[served.size] = link
        served.size += 1
        viewed.links += 1
        if served.heap.size:
            promise(served, link)

    def push(self, cls, run, priority, spec, first, count):
        cdef uint64_t run_number = unsigned("run", run, U64_MAX)
        cdef int32_t level = priority_of(priority)
        cdef uint32_t spec_number = <uint32_t>unsigned("spec", spec, U32_MAX)
        cdef uint32_t start = <uint32_t>unsigned("first", first, U32_MAX)
        cdef uint32_t length = <uint32_t>unsigned("count", count, U32_MAX)
        cdef Class *served = self.class_of(cls)
        check_end(start, length)
        if length == 0:
            return
        cdef RunQueue *queue = self.queue_of(served, run_number, level)
        reserve_range(queue)
        append(queue, spec_number, start, start + length - 1)
        self.grown(queue, length)

    def push_back(self, cls, run, priority, spec, index):
        cdef uint64_t run_number = unsigned("run", run, U64_MAX)
        cdef int32_t level = priority_of(priority)
        cdef uint64_t spec_number = unsigned("spec", spec, U32_MAX)
        cdef uint64_t start = unsigned("index", index, U32_MAX)
        cdef RunQueue *queue = self.queue_of(self.class_of(cls), run_number, level)
        pairs_reserve(&queue.singles)
        pairs_push(&queue.singles, start << 32 | spec_number, queue.epoch)
        self.grown(queue, 1)

    def take(self, view, limit):
        cdef View *viewed = self.view_of(view)
        cdef int overflow = 0
        cdef int64_t most = PyLong_AsLongLongAndOverflow(limit, &overflow)
        if overflow < 0 or (overflow == 0 and most < 1):
            raise ValueError(f"limit must be at least 1, not {limit}")
        cdef RunQueue *queue = best_of(viewed)
        if queue == NULL:
            return None
        cdef Level *level = queue.level
        if overflow or most > <int64_t>U32_MAX:
            most = U32_MAX
        if level.waiting > 1:
            most = min(most, max(<int64_t>1, <int64_t>(QUANTUM / queue.cost)))
        map_reserve(&self.clocks, 1)
        cdef uint32_t spec, first, count
        find_front(queue, &spec, &first)
        count = take_front(queue, most, spec, first)
        self.charge(viewed, queue, count)
        return queue.cls.number, queue.node.run, queue.node.priority, spec, first, count

    def peek(self, view):
        cdef RunQueue *queue = best_of(self.view_of(view))
        if queue == NULL:
            return None
        cdef uint32_t spec, first
        find_front(queue, &spec, &first)
        return queue.cls.number, queue.node.run, queue.node.priority, spec, first

    def discard(self, cls, run, priority, first, count):
        cdef uint64_t run_number = unsigned("run", run, U64_MAX)
        cdef int32_t level = priority_of(priority)
        cdef uint32_t start = <uint32_t>unsigned("first", first, U32_MAX)
        cdef uint32_t length = <uint32_t>unsigned("count", count, U32_MAX)
        cdef RunQueue *queue = self.existing_queue(cls, run_number, level)
        if queue == NULL:
            raise KeyError(f"class {cls} has no run queue of run {run} and priority {priority}")
        check_end(start, length)
        cdef int64_t alive = queue.held - queue.dead
        if length > alive:
            raise ValueError(f"{length} tasks to discard, {alive} are queued")
        if length == 0:
            return
        if length == alive:
            empty(queue)
        else:
            bury(queue, start, length)
        queue.cls.ready -= length
        self.size -= length
        self.tidy(queue)
        if queue.held == queue.dead:
            self.unlist(queue)

    def set_cost(self, cls, run, priority, double seconds):
        if not isfinite(seconds) or seconds < 0:
            raise ValueError(f"a cost is a finite number of seconds from 0 on, not {seconds}")
        cdef uint64_t run_number = unsigned("run", run, U64_MAX)
        cdef int32_t level = priority_of(priority)
        cdef RunQueue *queue = self.existing_queue(cls, run_number, level)
        if queue != NULL:
            queue.cost = max(seconds, CHEAPEST)

    def forget_run(self, run):
        cdef uint64_t number = unsigned("run", run, U64_MAX)
        cdef RunQueue *queue = <RunQueue *><size_t>map_get(&self.runs, number, 0)
        cdef RunQueue *sibling
        map_remove(&self.runs, number, 0)
        while queue != NULL:
            sibling = queue.sibling
            self.forget_queue(queue)
            queue = sibling

    def ready(self, cls):
        return self.class_of(cls).ready

    def __len__(self):
        return self.size

    cdef Class *class_of(self, object cls) except NULL:
        cdef int overflow = 0
        cdef long long number = PyLong_AsLongLongAndOverflow(cls, &overflow)
        if overflow or not 0 <= number < self.class_count:
            raise KeyError(f"there is no class {cls}")
        return self.classes[number]

    cdef View *view_of(self, object view) except NULL:
        cdef int overflow = 0
        cdef long long number = PyLong_AsLongLongAndOverflow(view, &overflow)
        if overflow or not 0 <= number < self.view_count:
            raise KeyError(f"there is no view {view}")
        return self.views[number]

    cdef RunQueue *existing_queue(self, object cls, uint64_t run, int32_t priority) except? NULL:
        cdef int overflow = 0
        cdef long long number = PyLong_AsLongLongAndOverflow(cls, &overflow)
        if overflow or not 0 <= number < self.class_count:
            return NULL
        return <RunQueue *><size_t>map_get(&self.queues, run, queue_key(<uint32_t>number, priority))

    cdef RunQueue *queue_of(self, Class *cls, uint64_t run, int32_t priority) except NULL:
        """The run queue, made if there is none."""
        cdef uint64_t key = queue_key(cls.number, priority)
        cdef RunQueue *queue = <RunQueue *><size_t>map_get(&self.queues, run, key)
        cdef Level *level
        if queue != NULL:
            return queue
        map_reserve(&self.queues, 1)
        map_reserve(&self.runs, 1)
        map_reserve(&self.levels, 1)
        map_reserve(&self.priorities, 1)
        heap_reserve(&cls.heap, cls.queues + 1)
        level = <Level *><size_t>map_get(&self.levels, key, 0)
        queue = <RunQueue *>calloc(1, sizeof(RunQueue))
        if level == NULL and queue != NULL:
            level = <Level *>calloc(1, sizeof(Level))
        if queue == NULL or level == NULL:
            free(queue)
            raise MemoryError
        queue.node.run, queue.node.priority, queue.node.cls, queue.node.place = run, priority, cls.number, -1
        queue.cls, queue.level, queue.cost = cls, level, DEFAULT_COST
        queue.sibling = <RunQueue *><size_t>map_get(&self.runs, run, 0)
        map_put(&self.queues, run, key, <size_t>queue)
        map_put(&self.runs, run, 0, <size_t>queue)
        map_put(&self.levels, key, 0, <size_t>level)
        map_put(&self.priorities, <uint32_t>priority, 0, map_get(&self.priorities, <uint32_t>priority, 0) + 1)
        cls.queues += 1
        level.queues += 1
        return queue

    cdef void forget_queue(self, RunQueue *queue) noexcept:
        cdef Class *cls = queue.cls
        cdef uint32_t priority = <uint32_t>queue.node.priority
        cdef uint64_t key = queue_key(cls.number, queue.node.priority)
        cdef uint64_t others = map_get(&self.priorities, priority, 0) - 1
        cdef Py_ssize_t view
        cls.ready -= queue.held - queue.dead
        self.size -= queue.held - queue.dead
        if queue.node.place >= 0:
            self.unlist(queue)
        cls.queues -= 1
        queue.level.queues -= 1
        if queue.level.queues == 0:
            map_remove(&self.levels, key, 0)
            free(queue.level)
        if others:
            map_put(&self.priorities, priority, 0, others)
        else:
            map_remove(&self.priorities, priority, 0)
            for view in range(self.view_count):
                map_remove(&self.clocks, view, priority)
        map_remove(&self.queues, queue.node.run, key)
        free_queue(queue)

    cdef void grown(self, RunQueue *queue, uint32_t count) noexcept nogil:
        queue.held += count
        queue.cls.ready += count
        self.size += count
        if queue.node.place < 0:
            self.wake(queue)

    cdef void wake(self, RunQueue *queue) noexcept nogil:
        cdef Class *cls = queue.cls
        cdef Level *level = queue.level
        cdef Py_ssize_t place
        if level.waiting == 0:
            for place in range(cls.size):
                level.clock = max(level.clock, self.clock_of(cls.links[place].view, queue.node.priority))
        level.waiting += 1
        queue.node.vtime = max(queue.node.vtime, level.clock)
        heap_push(&cls.heap, &queue.node)
        if queue.node.place == 0:
            for place in range(cls.size):
                promise(cls, cls.links[place])

    cdef void unlist(self, RunQueue *queue) noexcept nogil:
        """The queue is empty, or gone. Links that promise it find out when they come up."""
        heap_remove(&queue.cls.heap, &queue.node)
        queue.level.waiting -= 1

    cdef void charge(self, View *view, RunQueue *queue, uint32_t count) noexcept nogil:
        """What was just taken counts, and the queue goes back to its place."""
        cdef Clock clock
        cdef volatile double used = count * queue.cost  # rounded before it is added, as in the twin: no fused step
        queue.level.clock = clock.time = queue.node.vtime
        if clock.bits:
            map_put(&self.clocks, view.number, <uint32_t>queue.node.priority, clock.bits)
        else:
            map_remove(&self.clocks, view.number, <uint32_t>queue.node.priority)
        queue.node.vtime += used
        queue.cls.ready -= count
        self.size -= count
        self.tidy(queue)
        if queue.held > queue.dead:
            sink(&queue.cls.heap, &queue.node)
        else:
            empty(queue)
            self.unlist(queue)

    cdef void tidy(self, RunQueue *queue) noexcept nogil:
        """Compact a queue that is half dead."""
        cdef int64_t before
        if 2 * queue.dead > queue.held:
            before = queue.held - queue.dead
            compact(queue)
            queue.cls.ready += queue.held - queue.dead - before
            self.size += queue.held - queue.dead - before

    cdef double clock_of(self, View *view, int32_t priority) noexcept nogil:
        cdef Clock clock
        clock.bits = map_get(&self.clocks, view.number, <uint32_t>priority)
        return clock.time


# ---------------------------------------------------------------- timers


cdef inline uint64_t to_ordered(double when) noexcept nogil:
    """Numbers in the order of the times they stand for."""
    cdef Clock clock
    clock.time = when + 0.0  # -0.0 becomes 0.0
    return ~clock.bits if clock.bits >> 63 else clock.bits | <uint64_t>1 << 63


cdef inline double from_ordered(uint64_t number) noexcept nogil:
    cdef Clock clock
    clock.bits = number & ~(<uint64_t>1 << 63) if number >> 63 else ~number
    return clock.time


cdef class Timers:
    """Deadlines with keys; see `_heap.pyi`. Owns the heap of (deadline, handle)."""

    cdef Pairs heap
    cdef dict keys  # handle: key, of what is neither due nor cancelled
    cdef uint64_t handle

    def __cinit__(self):
        self.keys = {}

    def __dealloc__(self):
        pairs_clear(&self.heap)

    def add(self, double when, key):
        if isnan(when):
            raise ValueError("a deadline is a time, not nan")
        pairs_reserve(&self.heap)
        self.handle += 1
        self.keys[self.handle] = key
        pairs_push(&self.heap, to_ordered(when), self.handle)
        return self.handle

    def cancel(self, handle):
        cdef Py_ssize_t at, kept = 0
        if handle not in self.keys:
            return False
        del self.keys[handle]
        if self.heap.size > 2 * len(self.keys):
            for at in range(self.heap.size):
                if self.heap.items[at].b in self.keys:
                    self.heap.items[kept] = self.heap.items[at]
                    kept += 1
            self.heap.size = kept
            pairs_order(&self.heap)
        return True

    def next(self):
        while self.heap.size:
            if self.heap.items[0].b in self.keys:
                return from_ordered(self.heap.items[0].a)
            pairs_pop(&self.heap)
        return None

    def due(self, double now):
        cdef list due = []
        cdef uint64_t end, handle
        if isnan(now):
            return due
        end = to_ordered(now)
        while self.heap.size and self.heap.items[0].a <= end:
            handle = self.heap.items[0].b
            pairs_pop(&self.heap)
            if handle in self.keys:
                due.append(self.keys.pop(handle))
        return due

    def __len__(self):
        return len(self.keys)
