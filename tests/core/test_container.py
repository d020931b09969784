"""The Dockerfile and compose.yaml, as far as they can be held without docker."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.serving import StandIn, running

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def instructions(name):
    """What stands after each instruction of that name, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", text, re.MULTILINE)


def test_what_is_copied_is_there_and_is_not_kept_out():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    sources = [
        name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]
    ]
    assert len(sources) == 7
    assert [
        name for name in sources if not (ROOT / name).exists() or f"!{name}" not in ignored
    ] == []


def test_it_installs_extras_that_there_are_and_runs_as_nobody_in_particular():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (extras,) = re.findall(r"'\.\[(.+)\]'", DOCKERFILE)
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
    (user,) = instructions("USER")
    assert f"useradd --uid {user} " in DOCKERFILE and user != "0"


def test_its_command_is_one_that_dualrag_takes():
    (command,) = instructions("ENTRYPOINT")
    program, *arguments = json.loads(command)
    assert program == "dualrag" and arguments[arguments.index("--port") + 1] in instructions(
        "EXPOSE"
    )
    helped = subprocess.run(
        [sys.executable, "-m", "rag_core.cli", *arguments, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert helped.returncode == 0, helped.stderr


@pytest.mark.parametrize("is_ready", [True, False])
def test_its_health_check_tells_a_server_that_answers(is_ready):
    (line,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(line[line.index("CMD ") + 4 :])
    assert program == "python"
    with running(StandIn()) as server:
        server.service.is_ending = not is_ready
        arguments = [argument.replace(":8000", f":{server.port}") for argument in arguments]
        assert subprocess.run([sys.executable, *arguments]).returncode == (0 if is_ready else 1)


def test_compose_opens_it_to_this_machine_alone():
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"].values()
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["read_only"]
    assert service["init"], "the first process would not end while it loads"
    assert [volume.split(":")[1] for volume in service["volumes"]] == instructions("VOLUME")
