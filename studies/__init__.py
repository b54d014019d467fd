"""Studies beside the pipeline: each is one command on top of `persona_lib`, and no notebook needs it."""
