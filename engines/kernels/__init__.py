"""Routed experts on NVIDIA devices: one kernel source for the interpreter and for every device."""
