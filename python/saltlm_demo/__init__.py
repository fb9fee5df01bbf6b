"""The demo: a real model is given a Finnish tokenizer. It also holds the real inputs that tests and benches use."""
