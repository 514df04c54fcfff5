"""What the trainers in configs/ are made of."""
