"""Text and tokenizers: reading files and pipes, parallel corpora, test sets, tokenizers, vocabularies.

Reads text files and settings; provides lines, sentence pairs and token ids. May import config; never imports torch.
"""
