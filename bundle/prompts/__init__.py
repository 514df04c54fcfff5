"""The mixture of prompts: defocus, pathology and edge prompts of a tile."""
