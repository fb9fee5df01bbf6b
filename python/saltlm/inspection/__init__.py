"""Reading the record of the rows of a transferred folder."""
