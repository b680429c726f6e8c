"""Recipes: which part of the model is kept in which number format."""
