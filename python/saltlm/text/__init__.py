"""Text files: documents and corpora."""
