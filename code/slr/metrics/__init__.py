"""Metrics: plain lists and numpy arrays in, plain numbers out. No torch, no pictures.

`topk` scores labels (isolated signs, heads with one answer a clip); its rates are decimals between 0 and 1. `wer`
scores gloss sentences as sclite does, in per cent, with `cleanup` for PHOENIX's rules; `text` scores translations. Only
`transcripts` and `text` read files.
"""
