"""The settings of a node: one table, and where a value comes from."""
