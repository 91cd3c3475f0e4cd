"""What the build of the site adds to the pages: notebooks with their outputs, the model zoo, the changelog, code."""

import importlib
import inspect
import io
import re
import textwrap
from functools import cache
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


def on_config(config):
    """Puts every notebook into the navigation."""
    pages = ["notebooks/index.md", *(f"notebooks/{path.stem}.md" for path in notebooks())]
    config.nav = [{"Notebooks": pages} if "Notebooks" in entry else entry for entry in config.nav]
    return config


def on_files(files, config):
    """Adds the pages that are made of something else than Markdown in docs/."""
    made = {"changelog.md": (ROOT / "CHANGELOG.md").read_text(), **zoo(), **notebook_pages()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, **_):
    """Replaces `{{ source flowkit.nets.gated.GatedConv.forward }}` by that code, as it stands."""
    return re.sub(r"^\{\{ source (\S+) \}\}$", lambda match: source(match[1]), markdown, flags=re.MULTILINE)


def on_page_content(html, *, page, config, files):
    """Puts drawings into the page itself, so that their lines take the colour of the text, light or dark."""

    def drawing(match):
        svg = (Path(config.docs_dir) / "assets" / "drawings" / f"{match['name']}.svg").read_text()
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{match["alt"]}" ', 1)
        return f'<div class="drawing">{svg}</div>'

    return re.sub(r'<img alt="(?P<alt>[^"]*)" src="[^"]*assets/drawings/(?P<name>\w+)\.svg" ?/?>', drawing, html)


def source(path):
    """A fenced block with the code of what `path` names, and where it stands."""
    names = path.split(".")
    for length in range(len(names) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            continue
        for name in names[length:]:
            found = getattr(found, name)
        lines, first = inspect.getsourcelines(found)
        file = Path(inspect.getfile(found)).relative_to(ROOT)
        code = textwrap.dedent("".join(lines)).rstrip()
        return f'```python title="{file}, from line {first}"\n{code}\n```'
    raise PluginError(f"there is no {path} to show the code of")


def notebooks():
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook_pages():
    """Each notebook as a page, with the outputs it was saved with; its pictures lie beside it."""
    import nbformat
    from nbconvert import MarkdownExporter

    made = {"notebooks/index.md": (ROOT / "notebooks" / "README.md").read_text().replace(".ipynb)", ".md)")}
    if not made["notebooks/index.md"].startswith("# "):
        made["notebooks/index.md"] = "# Notebooks\n\n" + made["notebooks/index.md"]
    exporter = MarkdownExporter()
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    for path in notebooks():
        name = path.stem
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:  # warnings and progress bars are for whoever runs it
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        files = {"output_files_dir": f"{name}_files", "unique_key": name}
        page, resources = exporter.from_notebook_node(notebook, files)
        # From notebooks/ of the repository to that of the site.
        page = page.replace("](../docs/", "](../").replace(".ipynb)", ".md)")
        made[f"notebooks/{name}.md"] = page
        made |= {f"notebooks/{file}": data for file, data in resources["outputs"].items()}
    return made


@cache
def zoo():
    """The page of the models, from the functions that make them and from the cards of trained weights."""
    import flowkit as fk

    made = {}
    lines = [
        "# Model zoo",
        "",
        "A model of a paper is a function that gives a `Flow`. Weights that come with a card were trained by flowkit",
        "itself; [trained weights](weights.md) says how to load, fetch and share them, and [reading a card](cards.md)",
        "what the figures mean.",
        "",
        "## Models",
        "",
        "| function | what it makes |",
        "|---|---|",
    ]
    for name in fk.zoo.__all__:
        function = getattr(fk.zoo, name)
        if inspect.isfunction(function) and inspect.signature(function).return_annotation == "Flow" and name != "load":
            about = inspect.getdoc(function).splitlines()[0].replace("|", r"\|")
            lines.append(f"| [`fk.zoo.{name}`][flowkit.zoo.{name}] | {about} |")
    lines += ["", "## Trained weights", ""]
    for name, weights in fk.zoo.available().items():
        card = fk.zoo.card(name)
        lines += [f"### {name}", "", f'```python\nflow = fk.zoo.load("{name}")\n```', ""]
        picture = samples(name) if weights.where != "remote" else None
        if picture is not None:
            made[f"assets/zoo/{name}.png"] = picture
            lines += [f"![Samples of {name}](assets/zoo/{name}.png){{ .samples }}", ""]
        lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts(card, weights)), ""]
    made["zoo.md"] = "\n".join(lines)
    return made


def facts(card, weights):
    """What a card says, in the order in which one wants to know it."""
    training, score = card["training"], card["evaluation"] or {}
    yield "model", f"`{card['model']}`, {card['parameters']:,} parameters in {card['dtype']}"
    place = "to be fetched" if weights.where == "remote" else f"in the {weights.where}"
    yield "files", f"{weights.size / 2**20:.1f} MiB, {place}"
    if "data" in training:
        yield "trained on", training["data"]
    if "split" in training:
        yield "split", training["split"]
    if score:
        yield "held out", f"{score['images']:,} images of {' × '.join(map(str, score['shape']))}"
        one = score["exact"] or score["draws"] == 1
        kind = "" if score["exact"] else ", single samples" if one else f", {score['draws']} importance samples"
        yield "bits/dim", f"**{score['bits_per_dim']:.3f}** ± {score['standard_error']:.3f}{kind}"
        for kind, what in (("single", "single samples"), ("uniform", "uniform noise")):
            if score.get(f"bits_per_dim_{kind}") is not None and not (one and kind == "single"):
                value, error = score[f"bits_per_dim_{kind}"], score[f"{kind}_standard_error"]
                yield f"bits/dim, {what}", f"{value:.3f} ± {error:.3f}"
    stages, stage = [], training
    while "steps" in stage:
        stages.append(f"{stage['steps']:,} steps of {stage['batch']}, {stage['minutes']:.0f} minutes")
        stage = stage.get("started_from", {}).get("training", {})
    if stages:
        yield "training", "; then ".join(reversed(stages))
    if "command" in training:
        yield "command", f"`{training['command']}`"
    yield "SHA-256", f"`{card['sha256'][:16]}…`"


def samples(name):
    """A picture of 48 samples of trained weights, or None if it takes a context that nobody can guess."""
    import matplotlib as mpl
    import torch

    import flowkit as fk
    from flowkit.plots import image_grid

    mpl.use("agg")
    import matplotlib.pyplot as plt

    flow, config = fk.zoo.load(name), fk.zoo.card(name)["config"]
    generator, classes = torch.Generator().manual_seed(0), config.get("classes") or 0
    if flow.context_ndim is None:
        images, columns = flow.sample((48,), generator=generator), 12
    elif classes:
        images, columns = flow.sample((4,), torch.arange(classes), generator=generator).flatten(0, 1), classes
    else:
        return None
    rows = -(-len(images) // columns)
    figure = plt.figure(figsize=(columns / 2, rows / 2))
    image_grid(images, levels=config.get("levels", 256), columns=columns, ax=figure.add_axes((0, 0, 1, 1)))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160, transparent=True)
    plt.close(figure)
    return buffer.getvalue()
