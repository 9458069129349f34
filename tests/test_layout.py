"""The tests lie where their package does, and share by way of ``tests/support``."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
CERTJOB = TESTS.parent / "certjob"

BESIDE_THE_PACKAGES = {"acceptance", "benchmarks", "chaos", "looks", "mutants", "support"}


def test_the_tests_mirror_the_packages() -> None:
    """Whoever knows a module knows where its tests are."""
    packages = {path.parent.name for path in CERTJOB.glob("*/__init__.py")}

    folders = {path.parent.name for path in TESTS.glob("*/__init__.py")}

    assert folders - BESIDE_THE_PACKAGES == packages


def test_no_test_borrows_from_another_test() -> None:
    """What two of them need is in ``tests/support``: a test can be rewritten without a look at the others."""
    borrowed = {
        f"{path.relative_to(TESTS)}: {node.module}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and ".test_" in node.module
    }

    assert borrowed == set()
