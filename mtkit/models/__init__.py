"""Architectures: the Transformer, recurrent encoder-decoders, and hybrids of the two.

Every model offers the same three methods, encode, decode and output; the registry builds the one that the settings
name. Features (of tokens, before the output layer) and decoding states flow out. May import data (for rows), text and
config.
"""
