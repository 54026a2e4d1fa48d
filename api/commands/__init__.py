"""Connections that send bunqueue's commands, over whatever transport: what they share, and the TCP listener."""
