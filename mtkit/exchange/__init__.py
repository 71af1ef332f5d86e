"""Models for other libraries and from them: export, import, and vocabularies made larger.

A bundle goes in and files of CTranslate2 or Hugging Face come out, or the other way round. What was written is compared
with the original by translating with both. May import translation and what is below it.
"""
