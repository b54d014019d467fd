"""Persona inference and persona tailoring: a reproduction of "Whose Boat Does it Float?" (ACL 2025).

Importing this package is cheap: torch, transformers and TRL are imported by the functions that need
them, never here.
"""

import atexit
import gc

__version__ = "0.1.0"

# A process that ends searches all that it ever imported for garbage: two seconds with TRL, in each kernel and
# worker. What is frozen is not searched, and goes with the process.
atexit.register(gc.freeze)
