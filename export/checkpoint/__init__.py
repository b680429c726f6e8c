"""Checkpoint folders: which tensors there must be, checks at open, reading one by one."""
