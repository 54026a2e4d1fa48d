"""Consensus: replicates opaque batches of bytes over three or five nodes and applies each exactly once. Knows nothing of jobs."""
