"""A deterministic simulation: the real programs over virtual time, simulated connections and simulated machines.

`world`     virtual time, programs that can be killed or frozen between two callbacks, the trace
`network`   connections that are late, cut, half open, silent or refused
`machines`  processes that are only a start and an end, and the `Machine` an agent is given
`disk`      a store that forgets what was not committed, and the committer before it

Everything comes from one seed: the same seed gives the same trace, whatever PYTHONHASHSEED is.
"""
