"""Downstream tasks through lm-evaluation-harness."""
