"""Neutral graphs to engines for a target: lowering, building, checking."""
