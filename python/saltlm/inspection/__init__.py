"""Where each row of a transferred model came from."""
