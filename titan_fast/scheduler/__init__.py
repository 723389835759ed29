"""The decisions of the master, and nothing else: no I/O, no clock, no asyncio, no logging, no wire.

Theory of operation
-------------------
The scheduler is a value with one door (`core.Scheduler`). Events go in, each at a time the caller gives; facts and
commands come out. Facts (`facts`) are what must survive a crash, in the order they were made; commands
(`commands`) are what the shell should do. The same code runs in the master, in unit tests and in simulation.

A run is a table of columns (`state.Run`). Each *spec* is one row: a named task, or an array of any number of tasks
with one description. Every task has an index counted through the run and one byte of state. Dependencies are
counters between specs: a spec knows how many of its parents are unfinished; when the last member of a spec is
final it decrements its children, and a child at zero is judged by its ``when`` and released, skipped or cancelled.

Released tasks go, as ranges, to the ready queue under the class of what they require. `place` runs once per turn
for the whole batch: for each kind of worker, least loaded worker first, it takes stretches of tasks and makes each a
*lot*: consecutive tasks of one spec, consecutive fences, one worker. In-flight state is kept per lot. A worker may
hold more than its slots (prefetch, about 20 ms of work by measured durations); what has not started is recalled
for an idle worker or a more urgent task.

A lot's members end by results, by the loss of their worker, or by a recall; a failed attempt waits out its backoff
as a timer, a lost one goes back to the front of its queue and is counted against the crash limit. Only
`lifecycle.move` writes a task's state, against one table of transitions.

No assignment is a fact. Each attempt has a fence, which only grows, and each task a floor, raised by every fact that
ends an attempt of it. A worker that attaches tells all it holds; an attempt counts if its fence is above the floor of
its task and above the accepted fences of the parents, and no higher one of that task is known (`reactions.workers`).
So a restart needs no record of what was under way: `recovery` replays what ended, holds the unfinished runs until the
workers that were alive are back, and releases what none of them has. What cannot be judged yet, because the word of a
parent may still be on its way, waits and is asked about again when something of the parent ends.
"""
