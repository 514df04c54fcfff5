"""The protocol behind every figure: sharp fields are defocused, restored as a whole, and scored against the truth."""
