"""The demo: transfer a Finnish tokenizer to a real English model. Tests and benches use its real inputs, too."""
