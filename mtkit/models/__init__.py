"""Architectures: the Transformer, the recurrent encoder-decoders, and mixtures of both.

Each is three verbs (encode, decode, output) behind one interface; the registry builds the one that the settings name.
May import data (the batch) and config.
"""
