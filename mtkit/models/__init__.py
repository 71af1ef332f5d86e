"""Architectures: Transformer, recurrent encoder-decoders, hybrids of the two, a conditional masked language model.

Every model has the methods `encode`, `decode` and `output`. `decode` returns features (the input of the output layer,
one vector per token) and a new decoding state. The registry builds the architecture that the settings name. Of the
other packages of mtkit, only `data` (for `Rows`), `text` and `config` may be imported here.
"""
