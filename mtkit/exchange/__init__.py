"""Export of bundles to other libraries, import of models from them, extension of vocabularies, and `mtkit.load`.

Export writes a bundle as files for CTranslate2 or Hugging Face transformers, and compares the translations of mtkit
and of that library. Import makes bundles from models of Hugging Face transformers and of Marian. `load` opens a model
to translate with PyTorch or with CTranslate2. Of the other packages of mtkit, only `translation`, `bundle`, `models`,
`data`, `text` and `config` may be imported here.
"""
