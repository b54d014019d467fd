"""Figures, each drawn from saved tables."""
