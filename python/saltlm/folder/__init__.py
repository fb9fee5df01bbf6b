"""What a transfer writes beside the weights: summary, provenance and the folder itself."""
