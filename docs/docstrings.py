"""Lets docstrings that read well as plain text read well on the site: shapes keep their stars, doctests are code."""

import re

import griffe

# Sections that Google's style does not know.
SECTION = re.compile(r"^(Shapes|Reference):\n((?:    .*\n?)+)", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Escapes the stars of shapes such as (*batch, *event), makes lists of shapes, and examples of doctests."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            prose, *doctest = re.split(r"^(?=>>> )", obj.docstring.value, maxsplit=1, flags=re.MULTILINE)
            prose = re.sub(r"(?<=[(, ])\*(?=\w)", r"\\*", prose)
            prose = SECTION.sub(section, prose)
            indented = "".join(re.sub(r"^", "    ", part, flags=re.MULTILINE) for part in doctest)
            obj.docstring.value = prose + (f"Examples:\n{indented}" if doctest else "")

    def on_package(self, *, pkg, **kwargs):
        """Where a package exports a function under the name of the file that has it, the name is the function's."""
        for module in [pkg, *pkg.modules.values()]:
            for name in map(str, module.exports or ()):
                file = module.members.get(name)
                if file is not None and not file.is_alias and file.is_module and name in file.members:
                    for member in module.members.values():
                        if member.is_alias and member.target_path.startswith(f"{file.path}."):
                            member.resolve_target()  # while there is a way to it
                    module.members[name] = griffe.Alias(name, file.members[name], parent=module)


def section(match):
    """A heading, and a list with an item for every line that begins with names and a colon."""
    heading, lines = match[1], match[2].splitlines()
    items = []
    for line in (line.strip() for line in lines):
        if not line:
            continue
        names = re.match(r"[\w, ]+:", line) if heading == "Shapes" else None
        if names or not items:
            items.append(line)
        else:
            items[-1] += f" {line}"
    if len(items) == 1:
        return f"**{heading}:** {items[0]}\n\n"
    return f"**{heading}:**\n\n" + "".join(f"- {item}\n" for item in items) + "\n"
