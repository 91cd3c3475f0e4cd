"""What stands in several files of the repository agrees, and what the release script refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flowkit as fk
from scripts import release

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# For those who work on flowkit itself; always of the newest versions.
NEWEST = {"lint", "docs", "release", "peers"}


def pinned(path):
    """Names and versions of a file of constraints; the environment markers do not matter here."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.match(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines]
    return [(name.lower(), version) for name, version in pairs]


def required(*extras):
    """Name and lower bound of what flowkit and these extras require."""
    found = {}
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        name, rest = re.match(r"([\w-]+)(.*)", line).groups()
        if name != "flowkit":
            bound = re.match(r"(?:\[\w+\])?>=([\d.]+)", rest)
            assert bound, f"pyproject.toml: {line} has no lower bound"
            found[name.lower()] = bound[1]
    return found


def numbers(version):
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def test_the_oldest_versions_are_those_of_the_metadata():
    """constraints-min.txt is what the metadata promises, so that it can be tested."""
    bounds = required(*(set(EXTRAS) - NEWEST))
    oldest = dict(pinned(ROOT / "constraints-min.txt"))
    assert {name: numbers(version) for name, version in oldest.items()} == {
        name: numbers(bound) for name, bound in bounds.items()
    }


def test_the_tested_versions_cover_the_metadata():
    tested = dict(pinned(ROOT / "constraints.txt"))
    for name, bound in required(*(set(EXTRAS) - {"peers"})).items():
        assert name in tested, f"constraints.txt: no {name}"
        assert numbers(tested[name]) >= numbers(bound)


def test_versions_agree():
    assert f"\nversion: {fk.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    headings = [*release.sections((ROOT / "CHANGELOG.md").read_text())]
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\S*\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])


def test_pythons_agree():
    supported = [line.rsplit(" ")[-1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert PROJECT["requires-python"] == f">={supported[0]}"
    assert [numbers(version) for version in supported] == sorted(numbers(version) for version in supported)


READY = {
    "flowkit/__init__.py": '"""Flows."""\n\n__version__ = "0.2.0"\n',
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n\n- Something.\n",
    "CITATION.cff": "title: flowkit\nversion: 0.2.0\n",
    "tests/api.txt": "  flowkit.Flow(transform)\n",
}


@pytest.fixture
def repository(tmp_path):
    """A repository with what a release looks at; gives a function that changes a file of it and commits."""

    def git(*command):
        name = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *name, *command], cwd=tmp_path, check=True, capture_output=True)

    def write(path, text):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        git("add", "--all")
        git("commit", "--message", path)

    git("init")
    for path, text in READY.items():
        write(path, text)
    return tmp_path, write, git


def test_a_commit_that_is_ready(repository):
    assert release.missing(repository[0]) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("flowkit/__init__.py", "0.2.0", "0.2.1", "second heading is not [0.2.1]"),
        ("flowkit/__init__.py", "0.2.0", "0.2.0.dev", "is no version"),
        ("CHANGELOG.md", "## [0.2.0]", "- More.\n\n## [0.2.0]", "lines under [Unreleased]"),
        ("CHANGELOG.md", " - 2027-01-31", "", "second heading is not [0.2.0]"),
        ("CHANGELOG.md", "- Something.", "", "nothing stands under"),
        ("CHANGELOG.md", "## [Unreleased]\n", "", "wanted [Unreleased]"),
        ("CITATION.cff", "0.2.0", "0.1.0", "CITATION.cff: the version is not 0.2.0"),
        ("tests/api.txt", "  flowkit", "+ flowkit", "there are marks"),
    ],
)
def test_what_is_not_ready_is_named(repository, path, old, new, said):
    root, write, _ = repository
    assert old in READY[path]
    write(path, READY[path].replace(old, new))
    assert said in "\n".join(release.missing(root))


def test_uncommitted_changes_and_tags_that_are_there(repository):
    root, _, git = repository
    git("tag", "v0.2.0")
    (root / "stray").touch()
    assert [line.split(":")[0] for line in release.missing(root)] == ["git", "git"]


@pytest.mark.parametrize("dry", [True, False])
def test_only_a_run_in_earnest_tags(repository, dry, monkeypatch, capsys):
    root, _, git = repository
    git("config", "user.name", "test")
    git("config", "user.email", "test@localhost")
    built = root / ".git" / "built"
    monkeypatch.setattr(release, "ROOT", root)
    monkeypatch.setattr(release, "PACKAGE", [sys.executable, "-c", f"open({str(built)!r}, 'w')"])
    monkeypatch.setattr(sys, "argv", ["release.py", *(["--dry-run"] if dry else [])])
    if dry:
        with pytest.raises(SystemExit, match="0|False"):
            release.main()
    else:
        release.main()
        assert "git push origin HEAD v0.2.0" in capsys.readouterr().out
    assert built.exists()
    assert release.git(root, "tag", "--list") == ("" if dry else "v0.2.0")


def test_what_is_not_ready_is_neither_built_nor_tagged(repository, monkeypatch, capsys):
    root = repository[0]
    (root / "stray").touch()
    monkeypatch.setattr(release, "ROOT", root)
    monkeypatch.setattr(release, "PACKAGE", ["false"])
    monkeypatch.setattr(sys, "argv", ["release.py"])
    with pytest.raises(SystemExit):
        release.main()
    assert "not ready: git: there are changes" in capsys.readouterr().err
    assert release.git(root, "tag", "--list") == ""
