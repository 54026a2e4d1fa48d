"""The replicated state machine: whatever decides what an entry of the log means. No clock, no chance, no input or output."""
