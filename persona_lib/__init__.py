"""Persona inference and persona tailoring: a reproduction of "Whose Boat Does it Float?" (ACL 2025).

Importing this package is cheap: torch, transformers and TRL are imported by the functions that need
them, never here.
"""

__version__ = "0.1.0"
