"""The operator and the layer: gamma, the parameters of a mask, three backends that draw masks, autograd.

May import: errors.
"""
