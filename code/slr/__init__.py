"""Sign language recognition in plain PyTorch; `code/README.md` shows the floors of the house."""

__version__ = "0.1.0"
