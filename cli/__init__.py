"""The command line: run a node, run a cluster on one machine, look at one. The queue is in the other packages."""
