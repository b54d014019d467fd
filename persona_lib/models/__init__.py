"""Language models: loading, tokens, generation here or served, and the base pretrained here."""
