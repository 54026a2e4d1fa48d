"""The state machine of the job queue and what runs it on a node. Knows nothing of HTTP; sees consensus through `engine`."""
