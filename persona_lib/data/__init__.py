"""Preference pairs and tailoring rows: readers, splits, retrieval and checks for leaks."""
