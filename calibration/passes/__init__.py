"""All samples through the model, one graph at a time."""
