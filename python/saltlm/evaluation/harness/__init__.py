"""Downstream tasks of lm-evaluation-harness."""
