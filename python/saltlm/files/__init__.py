"""Output folders, locks, copies and hashes: everything that touches the file system."""
