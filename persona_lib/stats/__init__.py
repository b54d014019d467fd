"""Rates, intervals and counts of text: numbers in, numbers out."""
