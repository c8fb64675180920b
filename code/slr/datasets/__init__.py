"""Readers and writers of the data sets, one file each, and the built-in synthetic signer."""
