"""Quantised matrices: number formats, and how a traced graph comes to hold them."""
