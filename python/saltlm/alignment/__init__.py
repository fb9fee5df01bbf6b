"""Tokens of two tokenizers compared as bytes, and the tokenizer of the result."""
