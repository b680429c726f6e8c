"""What engines on a GPU share: the device, its memory, steps in pieces."""
