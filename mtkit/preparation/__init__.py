"""Preparation of a run: makes its tokenizer, its training corpora as token ids, and its validation text.

Reads parallel text and settings, and writes the folders `tokenizer` and `data` of the run directory. Counts and reports
the pairs that are left out, and warns of suspicious text. Has a teacher translate training text. Of the other packages
of mtkit, only `translation`, `bundle`, `search`, `models`, `data`, `text` and `config` may be imported here.
"""
