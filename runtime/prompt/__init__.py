"""Conversations and images to token ids and patches."""
