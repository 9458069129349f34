"""The packages of a release as a CycloneDX document: ``python build_sbom.py requirements.lock > sbom.cdx.json``."""

import json
import re
import sys
from pathlib import Path

from build_version import build_version

PINNED = re.compile(r"^([a-z0-9.-]+)(?:\[[a-z,]+\])?==(\S+)", re.MULTILINE)
"""A package of a lock, without its extras and its hashes."""


def component(name: str, version: str, kind: str = "library") -> dict[str, str]:
    """Return the entry of a package, with its package URL."""
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def sbom(lock: str) -> dict[str, object]:
    """Return the document about certjob and the packages of a lock."""
    ours = component("certjob", build_version(), kind="application")
    theirs = [component(name, version) for name, version in PINNED.findall(lock)]
    needs = [{"ref": ours["bom-ref"], "dependsOn": [each["bom-ref"] for each in theirs]}]
    metadata = {"component": ours | {"licenses": [{"license": {"id": "Apache-2.0"}}]}}
    about = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    return about | {"metadata": metadata, "components": theirs, "dependencies": needs}


if __name__ == "__main__":
    print(json.dumps(sbom(Path(sys.argv[1]).read_text(encoding="utf-8")), indent=2))
