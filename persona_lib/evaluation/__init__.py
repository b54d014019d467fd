"""Persona inference, generation for an arm, judges, persona swaps, and the search on validation rows."""
