"""Language models: loading, tokens, generation here or served, and guards."""
