"""Operators on strings, dictionaries and image files, which compiled models cannot hold."""

from __future__ import annotations

from ..registry import refuse

_STRINGS = "works on strings, which compiled models cannot hold; do this step before the model"

refuse("StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch", because=_STRINGS)
refuse("ImageDecoder", because="reads image files; decode them before the model")
refuse("ZipMap", domain="ai.onnx.ml",
       because="gives a list of dictionaries, which compiled models cannot hold; export the model "
               "without it (skl2onnx: options={'zipmap': False})")
refuse("CategoryMapper", "LabelEncoder", domain="ai.onnx.ml", because=_STRINGS)
refuse("DictVectorizer", "CastMap", domain="ai.onnx.ml",
       because="works on dictionaries, which compiled models cannot hold; do this step before the "
               "model")
