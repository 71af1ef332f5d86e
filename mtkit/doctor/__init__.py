"""Examination of parallel text: what is wrong with it, where, what it costs, how to mend it; and the mending.

Input: two files, a table, TMX, JSON lines, or the corpora of settings. Output: findings, which `report/report.py`
writes as text and as a page, and cleaned copies of the text. Nothing is trained here, and torch is not imported.
"""
