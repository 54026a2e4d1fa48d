"""The BullMQ dialect over HTTP."""
