"""Breaks a cluster of real processes in every way, under load, and asks whether a promise was broken: `scripts/chaos`.

`faults` has what is done to nodes, links, disks, clocks and members, and when, and `cluster` those to whom it is done. `clients`, `events`
and `wires` make the load, in three dialects, and `history` keeps every request with its start, end and outcome. `judge` takes a history
apart, by job, and `linear` looks whether each part can have happened one request after the other, by the rules of `model`. `page`
draws it, with `drawing`'s charts. `episode` runs one cluster from its founding to the verdict.
"""
