"""Transitions by BullMQ's rules, for clients of its backend protocol. From feature level 1 on."""
