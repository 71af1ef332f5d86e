"""Preparation of a run: makes its tokenizer, its training corpora as token ids, and its validation text.

Reads parallel text and settings, and writes the folders `tokenizer` and `data` of the run directory. Counts and reports
the pairs that are left out, and warns of suspicious text. Of the other packages of mtkit, only `bundle` (since a run
may start from an existing model), `search`, `models`, `data`, `text` and `config` may be imported here.
"""
