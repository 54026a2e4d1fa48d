"""A whole cluster in one process: the real cluster/ and node/ code over virtual time, network and disks, all from one seed."""
