"""What clients get of `tool.py serve`: many at once, and a conversation's second turn."""
