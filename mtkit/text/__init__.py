"""Text and tokenizers: reading files and pipes, parallel corpora, test sets, tokenizers, vocabularies.

Reads text files and settings; provides lines, sentence pairs and token ids. Of the other packages of mtkit, only
`config` may be imported here. Torch is never imported.
"""
