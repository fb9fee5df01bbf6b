"""File system: output folders, locks, copies, hashes, JSON files and the cache."""
