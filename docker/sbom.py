"""The software bill of materials of this image, as CycloneDX JSON on the standard output.

It lists every Debian package and every Python package of the environment with version and licence, sorted and without
a time stamp: equal package sets give equal bytes.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

COPYRIGHTS = Path("/usr/share/doc")


def python_packages() -> Iterator[tuple[str, str, str]]:
    """Name, version and licence of every distribution that this interpreter imports from."""
    for package in metadata.distributions():
        about = package.metadata
        classifiers = [c.rsplit(" :: ", 1)[-1] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
        # Some packages put the whole text where its name belongs.
        named = [line for line in (about.get("License") or "").strip().splitlines()[:1] if line != "UNKNOWN"]
        licence = about.get("License-Expression") or " AND ".join(named or classifiers)
        yield about["Name"].lower().replace("_", "-"), package.version, licence


def debian_packages() -> Iterator[tuple[str, str, str]]:
    """Name, version and licences of every installed package; the licences from its copyright file."""
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${db:Status-Status}\n"]
    for line in subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines():
        name, version, status = line.split("\t")
        if status == "installed":
            yield name, version, " AND ".join(debian_licences(COPYRIGHTS / name / "copyright"))


def debian_licences(copyright_file: Path) -> list[str]:
    """The licences that a copyright file in Debian's machine-readable form names, else those it refers to."""
    if not copyright_file.is_file():
        return []
    text = copyright_file.read_text(encoding="utf-8", errors="replace")
    named = re.findall(r"^License: *(\S[^\n]*)$", text, re.MULTILINE)
    return sorted(set(named or re.findall(r"/usr/share/common-licenses/([\w.-]*\w)", text)))


def component(kind: str, name: str, version: str, licence: str) -> dict[str, Any]:
    """One entry of the bill."""
    entry = {"type": "library", "name": name, "version": version}
    entry["purl"] = f"pkg:{kind}/{quote(name)}@{quote(version)}"
    licences = [{"license": {"name": licence or "see the package's copyright file"}}]
    return {**entry, "licenses": licences}


def main() -> None:
    components = [component("pypi", *package) for package in sorted(python_packages())]
    components += [component("deb/debian", *package) for package in sorted(debian_packages())]
    print(
        json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}, indent=1)
    )


if __name__ == "__main__":
    main()
