"""Many requests at once on one engine: queue, slots, reuse, fairness, failures."""
