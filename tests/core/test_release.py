"""What a release says of itself: one version everywhere, and metadata that fit what CI tries."""

import re
from pathlib import Path

import pytest

from rag_core import __version__

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_one_version_everywhere():
    headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == __version__
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.MULTILINE)[1] == __version__


def test_metadata_name_the_pythons_that_are_tried():
    metadata = read("pyproject.toml")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', metadata)
    [lowest] = re.findall(r'^requires-python = ">=(.*)"$', metadata, re.MULTILINE)
    assert named[0] == lowest
    # both ends by CI and by `make compat`
    ends = {named[0], named[-1]}
    assert ends <= set(re.findall(r'"(3\.\d+)"', read(".github/workflows/ci.yml")))
    assert ends == set(re.findall(r'Pair\("(3\.\d+)"', read(".ci/compat.py")))


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_the_lowest_framework_is_the_one_that_compat_tries(framework):
    [lowest] = re.findall(rf'^\w+ = \["{framework}>=([\d.]+)"\]$', read("pyproject.toml"), re.M)
    assert f'"{framework}=={lowest}.*"' in read(".ci/compat.py")
    shown = {"torch": "PyTorch", "tensorflow": "TensorFlow"}[framework]
    assert re.search(rf"^\| {shown}.*\| {lowest} or newer", read("README.md"), re.MULTILINE)


def test_a_release_is_built_by_the_makefile_and_attested():
    workflow = read(".github/workflows/release.yml")
    assert "run: make dist" in workflow and re.search(r"^dist:", read("Makefile"), re.MULTILINE)
    assert "attest-build-provenance" in workflow and "attestations: true" in workflow
