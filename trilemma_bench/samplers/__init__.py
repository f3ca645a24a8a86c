"""Samplers, one module each; the module name is the registry name."""
