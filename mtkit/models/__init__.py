"""Architectures: the Transformer, recurrent encoder-decoders, and hybrids of the two.

Every model has the methods encode, decode and output; the registry builds the architecture that the settings name.
decode returns features (the input of the output layer, one vector per token) and a new decoding state. This package may
import data (for Rows), text and config.
"""
