"""Read text: documents of files, and corpora of files and datasets."""
