"""Drives an endpoint as many clients would, and measures what they get."""
