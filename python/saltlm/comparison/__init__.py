"""Comparison of transfer methods by short training runs."""
