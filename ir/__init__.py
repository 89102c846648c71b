"""The intermediate representations: tensor graphs (`ir.graph`) and loop kernels (`ir.kernel`).

Both share dtypes, the scalar expression language and index algebra found here.
May import numpy, ml_dtypes and networkx only.
"""
