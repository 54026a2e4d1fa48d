"""What happens in the cluster, as it happens: the stream of events of a node, and those who read it over WebSocket and SSE."""
