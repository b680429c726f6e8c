"""Passes that several targets run, and what the passes of several targets share."""
