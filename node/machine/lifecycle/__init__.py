"""Every transition of a job: the only code that moves one from table to table.

Functions over the state, which assume that an operation has checked what it wants; they do not refuse. Modules import those
below them only: telling, timing, unique_keys, groups, locks; places; families, dependencies, repetition; removal; retention; endings;
runs, revival, births, flows, changes; bullmq; crons, whole_queues; clock on top.
"""
