"""The settings of mtkit: each is declared once, with its name, type, default, limits and description.

Reads settings from the defaults, a YAML file and key=value arguments into an immutable Config, and writes them as
commented YAML and as a JSON schema. Of the other modules of mtkit, only `mtkit.errors` may be imported here; torch may
not be imported.
"""
