"""The steps and how they are run: plan, papermill, provenance, the report."""
