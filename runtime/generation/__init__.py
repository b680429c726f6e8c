"""Logits to text: sampling, stopping, thinking and answer."""
