"""Evaluation: scores of models on test sets, comparison of systems, plots, speed, and pages.

Input: models, settings or text files. Output: scores with their signatures, plots, tables of speed, and pages, each one
HTML file that opens in a browser without network; the module `page` gives the pages of all commands one style. Every
module of mtkit may be imported here except `cli`, `pipeline` and those in `commands` and `experiment`.
"""
