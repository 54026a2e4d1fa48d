"""The bunqueue dialect over HTTP, WebSocket and TCP."""
