"""Recipes: one YAML file for each published result row, and for each demonstration."""
