"""The optics of a slide scanner: what defocus does to an image, and how a focal stack is fused."""
