"""Checkpoints of random weights in the release's layout: tiny ones, odd ones, the full size."""
