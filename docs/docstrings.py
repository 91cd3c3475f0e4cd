"""Lets docstrings that read well as plain text read well on the site: shapes keep their stars, doctests are code."""

import re

import griffe


class PlainDocstrings(griffe.Extension):
    """Escapes the stars of shapes such as (*batch, *event), and puts doctests into an Examples section."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            prose, *doctest = re.split(r"^(?=>>> )", obj.docstring.value, maxsplit=1, flags=re.MULTILINE)
            prose = re.sub(r"(?<=[(, ])\*(?=\w)", r"\\*", prose)
            indented = "".join(re.sub(r"^", "    ", part, flags=re.MULTILINE) for part in doctest)
            obj.docstring.value = prose + (f"Examples:\n{indented}" if doctest else "")
