"""Focal stacks of a scanner -> a dataset: planes, all-in-focus targets, depth maps, labelled patches, a split."""
