"""MoP: out-of-focus pathology images brought into focus by a mixture of prompts."""

__version__ = "0.1.0"
