"""How far a restoration can be trusted, told without the truth."""
