"""Bits per byte, continuations, confidence intervals and downstream tasks of language models."""
