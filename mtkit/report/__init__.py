"""Pages that mtkit writes: each is one HTML file that opens in a browser without network.

Input: runs, models, sentences. Output: an HTML file. `page` is the house style, for any command that writes a page; the
other modules hold one page each. Every module of mtkit may be imported here except `cli`, `pipeline` and those in
`commands`.
"""
