"""Metrics: plain lists and numpy arrays in, plain numbers out. No torch, no files, no pictures.

`topk` scores labels (isolated signs, heads with one answer a clip). Every rate is a decimal between 0 and 1.
"""
