"""Model folders: what is read of them, how their weights are stored and how a causal LM is loaded."""
