"""Export of bundles to other libraries, import from them, and extension of vocabularies.

Export turns a bundle into files for CTranslate2 or Hugging Face transformers, and translates with both to compare them.
Import makes bundles of Hugging Face's and Marian's models. May import translation and what is below it.
"""
