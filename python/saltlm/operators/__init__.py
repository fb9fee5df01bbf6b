"""The numeric operators: their public form, their loading and their specification in stock torch."""
