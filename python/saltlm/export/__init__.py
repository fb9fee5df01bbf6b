"""Write a model folder in the form of another program."""
