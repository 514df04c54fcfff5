"""Slides and images of any size: reading, tiling, blending, writing."""
