"""The contents of the wheel, and its installation in a container."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from certjob.portal.edge_function import CONFIGURATION
from tests.conftest import Certjob
from tests.support.docs import ROOT, read
from tests.support.own_server import data_folder
from tests.support.proxy import Proxy

BIN = Path(sys.executable).parent
SYSTEM_PYTHON = Path("/usr/bin/python3")
NO_ONE = 10001
"""The user of the Containerfile."""


@pytest.fixture(scope="module")
def dist() -> Iterator[Path]:
    """The output of `make dist`: the wheel and the lock."""
    with data_folder("dist") as folder:
        output_of("make", "dist", f"DIST={folder}", f"BIN={BIN}", "READY=", cwd=ROOT)
        yield folder


def output_of(*command: object, **options: object) -> str:
    """Run a command that must succeed; return its standard output."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_wheel_has_the_edge_function_and_the_examples(dist: Path) -> None:
    """A user needs no checkout. A package index shows the README, and has no `docs/install.md`."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        readme = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))

    files = ["edge_function/index.ts", "examples/mirror.sql", "examples/kubernetes.yaml", "examples/crontab.example"]
    files += [f"examples/dashboard/{name}" for name in ("index.html", "dashboard.js", "words.json")]
    assert {f"certjob/{file}" for file in files} <= {*names}
    assert "/blob/main/docs/install.md" in readme
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", readme) == []


def test_sbom_has_the_packages_of_the_lock_with_their_tree_and_hashes(dist: Path) -> None:
    """Each package is reached from certjob by those that need it. A plus sign in a package URL would mean a space."""
    document = json.loads((dist / "sbom.cdx.json").read_text(encoding="utf-8"))
    components = {each["name"]: each for each in document["components"]}
    refs = {name: each["bom-ref"] for name, each in components.items()}
    tree = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    ours = document["metadata"]["component"]["bom-ref"]

    reached, open_references = set[str](), [ours]
    while open_references:
        reference = open_references.pop()
        reached.add(reference)
        open_references += [each for each in tree[reference] if each not in reached]

    locked = re.findall(r"^([a-z0-9-]+)==(\S+)$", (dist / "constraints.txt").read_text(), re.MULTILINE)
    assert [(name, each["version"]) for name, each in components.items()] == locked
    assert {("psycopg", "3"), ("httpx", "0")} <= {(name, version.split(".")[0]) for name, version in locked}
    (wheel,) = dist.glob("*.whl")
    assert f"certjob-{document['metadata']['component']['version']}-" in wheel.name
    assert reached == {*tree} == {ours, *refs.values()}
    assert refs["httpcore"] in tree[refs["httpx"]]
    assert refs["psycopg-binary"] in tree[refs["psycopg"]], "an extra of the lock"
    assert refs["httpcore"] not in tree[ours]
    hashes = [value["content"] for each in components.values() for value in each["hashes"]]
    assert hashes == re.findall(r"--hash=sha256:(\w{64})", (dist / "requirements.lock").read_text())
    assert not any("+" in reference for reference in reached)


def test_edge_function_command_overwrites_nothing(here: Certjob, tmp_path: Path) -> None:
    """It prints the lines of this repository's config.toml, and works without a database."""
    first = here("edge-function", "functions", CERTJOB_DATABASE_URL="")
    (tmp_path / "functions/hlf-dynamics-sync/index.ts").write_text("// ours\n")
    second = here("edge-function", "functions")

    assert (first.returncode, first.stdout) == (0, CONFIGURATION)
    assert CONFIGURATION in read("supabase/config.toml")
    copied = {path.name for path in (tmp_path / "functions/hlf-dynamics-sync").iterdir()}
    assert {"index.ts", "deno.json"} <= copied
    assert "tests" not in copied
    assert second.returncode == 2
    assert "exists already" in second.stderr
    assert (tmp_path / "functions/hlf-dynamics-sync/index.ts").read_text() == "// ours\n"


def test_hadolint_finds_nothing_wrong_with_the_containerfile() -> None:
    assert output_of(BIN / "hadolint", ROOT / "docs/examples/Containerfile") == ""


@pytest.mark.registry
def test_container_steps_install_certjob_for_a_user_without_rights(dist: Path, worker_url: str) -> None:
    """Its RUN step with the system's Python; then its entry point, with a home and /opt that cannot be written."""
    if os.geteuid() != 0 or not SYSTEM_PYTHON.exists():
        pytest.skip("the container's steps were not tried: this needs root and /usr/bin/python3")
    text = read("docs/examples/Containerfile").replace("\\\n", "")
    (step,) = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    (entry_point,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', text, re.MULTILINE)
    assert f"USER {NO_ONE}\n" in text
    with data_folder("container") as folder, Proxy(worker_url) as server:  # no one may use the server's socket
        shutil.copytree(dist, folder / "opt/dist")
        step = step.replace("/opt/", f"{folder}/opt/").replace("python3 -m", f"{SYSTEM_PYTHON} -m")
        output_of("/bin/sh", "-ec", step)
        (folder / "home").mkdir(mode=0o555)
        command = f"{folder}{entry_point}"
        settings = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home"), "CERTJOB_DATABASE_URL": server.url}
        as_no_one = {"user": NO_ONE, "group": NO_ONE, "extra_groups": [], "env": settings, "cwd": "/"}

        assert output_of(command, "--version", **as_no_one).startswith("certjob 1.")
        assert output_of(command, "run", **as_no_one) == ""
