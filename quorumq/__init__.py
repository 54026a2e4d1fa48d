"""quorumq: a job queue that survives the loss of machines. The import root; the packages are links to the folders beside it."""
