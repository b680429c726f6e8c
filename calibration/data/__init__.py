"""Conversations: read, drawn, encoded."""
