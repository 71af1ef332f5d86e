"""All settings, each with its name, type, default, limits and meaning in one place.

Defaults, a YAML file and key=value arguments go in; frozen settings, messages, commented YAML and a JSON schema come
out. Imports only errors, and never torch.
"""
