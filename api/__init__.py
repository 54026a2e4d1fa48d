"""The HTTP edge of a node: dialects as tables of routes over the operations of node/."""
