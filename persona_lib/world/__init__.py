"""The synthetic preference world: its words, its responses, and the oracle that reads them."""
