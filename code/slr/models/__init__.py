"""The models, one architecture a file: blocks, model, builder, in that order. `slr.catalogue` lists them."""
