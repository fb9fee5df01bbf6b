"""New embedding rows: assembly, methods, options tuned and the self-check."""
