"""Checks of a transferred folder: its record, its files, and its rows against the models that it was made from."""
