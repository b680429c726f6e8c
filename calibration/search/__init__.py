"""Finds the recipe `auto`."""
