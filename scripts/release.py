"""From a commit to a tag and the files that are to be uploaded. docs/versioning.md says what comes before and after.

    python scripts/release.py --dry-run    # say what is missing; build and try the package; tag nothing
    python scripts/release.py              # the same, then the tag; it prints what to push

Nothing leaves this machine: pushing and uploading are commands that it prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = [sys.executable, str(ROOT / "scripts" / "package.py")]


def git(root: Path, *command: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *command], cwd=root, text=True, capture_output=True, check=True).stdout.strip()


def version_of(root: Path) -> str:
    """The version that the source states."""
    return re.search(r'^__version__ = "(.+)"$', (root / "flowkit" / "__init__.py").read_text(), re.M)[1]  # type: ignore[index]


def sections(changelog: str) -> dict[str, str]:
    """What stands under each heading of the second level, the newest first."""
    _, *parts = re.split(r"^## ", changelog, flags=re.M)
    return {heading: text.strip() for heading, text in (part.split("\n", 1) for part in parts)}


def missing(root: Path) -> list[str]:
    """Why this commit is not to be released, each in a line."""
    version, found = version_of(root), []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        found.append(f"flowkit/__init__.py: {version} is no version; wanted such as 0.2.0 or 0.2.0rc1")
    if git(root, "status", "--porcelain"):
        found.append("git: there are changes that are not committed")
    if f"v{version}" in git(root, "tag", "--list").split():
        found.append(f"git: the tag v{version} is there already; a new release wants a new version")
    headings = sections((root / "CHANGELOG.md").read_text())
    first, *others = headings
    if first != "[Unreleased]":
        found.append(f"CHANGELOG.md: the first heading is {first!r}, wanted [Unreleased]")
    elif headings[first]:
        found.append(f"CHANGELOG.md: there are lines under [Unreleased]; they belong under [{version}]")
    dated = re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", others[0] if others else "")
    if not dated:
        found.append(f"CHANGELOG.md: the second heading is not [{version}] and its date")
    elif not headings[others[0]]:
        found.append(f"CHANGELOG.md: nothing stands under {others[0]}")
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text():
        found.append(f"CITATION.cff: the version is not {version}")
    if any(line[:2] != "  " for line in (root / "tests" / "api.txt").read_text().splitlines()):
        found.append("tests/api.txt: there are marks; run python scripts/public_api.py --release")
    return found


def main() -> None:
    """Check, build, tag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tag nothing")
    dry = parser.parse_args().dry_run
    version, found = version_of(ROOT), missing(ROOT)
    for line in found:
        print(f"not ready: {line}", file=sys.stderr)
    if found and not dry:
        raise SystemExit(1)
    subprocess.run(PACKAGE, cwd=ROOT, check=True)
    if dry:
        print(f"dry run: v{version} is {'not ready' if found else 'ready'}; nothing was tagged")
        raise SystemExit(bool(found))
    git(ROOT, "tag", "--annotate", f"v{version}", "--message", f"flowkit {version}")
    print(f"tagged v{version}. To publish it:\n  git push origin HEAD v{version}\n  python -m twine upload dist/*")


if __name__ == "__main__":
    main()
