"""Continual pre-training of a transferred model."""
