"""Several methods under one probe."""
