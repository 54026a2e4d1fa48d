"""What the scripts in the folder above run. The cluster of real processes that they start is in tests/support."""
