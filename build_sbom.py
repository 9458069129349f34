"""The packages of a release as a CycloneDX document: ``python build_sbom.py requirements.lock > sbom.cdx.json``.

Run it where the packages are installed, because only their metadata say which package needs which.
"""

import json
import re
import sys
from importlib.metadata import requires
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build_version import build_version

PINNED = re.compile(r"^([a-z0-9.-]+)(?:\[([a-z,]+)\])?==(\S+) \\\n((?: +--hash=.*\n)+)", re.MULTILINE)
"""A package of a lock: name, extras, version, and the lines with the hashes of its files."""


def component(name: str, version: str, kind: str = "library") -> dict[str, object]:
    """Return the entry of a package, with its package URL."""
    purl = f"pkg:pypi/{name}@{quote(version)}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def needs(name: str, *extras: str) -> set[str]:
    """Return the names of the packages that an installed package needs itself, with these extras."""
    found = map(Requirement, requires(name) or [])
    cases = [{"extra": extra} for extra in ("", *extras)]
    return {canonicalize_name(each.name) for each in found if not each.marker or any(map(each.marker.evaluate, cases))}


def sbom(lock: str) -> dict[str, object]:
    """Return the document about certjob and the packages of a lock."""
    ours = component("certjob", build_version(), kind="application")
    theirs, needed = {}, {"certjob": needs("certjob")}
    for name, extras, version, lines in PINNED.findall(lock):
        hashes = [{"alg": "SHA-256", "content": content} for content in re.findall(r"sha256:(\w+)", lines)]
        theirs[name] = component(name, version) | {"hashes": hashes}
        needed[name] = needs(name, *extras.split(","))
    references = {name: each["bom-ref"] for name, each in (theirs | {"certjob": ours}).items()}
    tree = [
        {"ref": references[name], "dependsOn": [references[each] for each in sorted(names)]}
        for name, names in needed.items()
    ]
    metadata = {"component": ours | {"licenses": [{"license": {"id": "Apache-2.0"}}]}}
    about = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    return about | {"metadata": metadata, "components": [*theirs.values()], "dependencies": tree}


if __name__ == "__main__":
    print(json.dumps(sbom(Path(sys.argv[1]).read_text(encoding="utf-8")), indent=2))
