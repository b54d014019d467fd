"""Tables, figures and pages, each drawn from what the steps have saved."""
