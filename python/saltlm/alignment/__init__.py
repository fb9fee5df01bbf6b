"""Compare the tokens of two tokenizers as bytes, and build the tokenizer of the result."""
