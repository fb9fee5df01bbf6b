"""Bits per byte, generation, intervals and downstream tasks."""
