"""Many transfers from one jobs file."""
