"""Every transition of a job: the only code that moves one from table to table.

Functions over the state, which assume that an operation has checked what it wants; they do not refuse. Modules import those
below them only: stream_events, timing, unique_keys, groups, locks; indexes; parents, dependencies, repetition; removal;
retention; finishing; runs, revival, creation, flows, changes; bullmq; crons, queues; clock on top.
"""
