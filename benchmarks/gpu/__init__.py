"""One command for the owner of a card: see `docs/gpu.md`."""
