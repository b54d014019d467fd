"""Tables over data sets and seeds, computed from finished files and saved; the aims."""
