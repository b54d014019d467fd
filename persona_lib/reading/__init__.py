"""What a reader sees: tables as text, the notebooks' examples and words, widgets, pages."""
