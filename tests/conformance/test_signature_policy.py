"""What the docker CLI shows of a signature policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import registry
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]


def test_an_image_that_the_policy_refuses_does_not_run(
    start_engine: Callable[..., OurEngine], plain_registry: registry.Registry, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    accept, reject = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    refused = f"{plain_registry.address}/busybox:latest"
    policy.write_text(json.dumps({"default": reject, "transports": {"docker": {"x.test": accept}}}))
    engine = start_engine("--signature-policy", str(policy))
    why = f"Source image rejected: Running image docker://{refused} is rejected by policy."
    for command in (("run", "--rm", refused, "true"), ("create", refused), ("pull", refused)):
        result = engine.docker(*command)
        assert result.code == (125 if command[0] == "run" else 1)
        assert why in result.err
    assert f"hint: {policy} says so for all images (default)" in engine.wherry("pull", refused).err
    hello = engine.docker("run", "--rm", "hello-world")
    assert "docker://docker.io/library/hello-world:latest is rejected by policy" in hello.err
    policy.write_text(json.dumps({"default": accept}))
    assert engine.docker.ok("run", "--rm", refused, "echo", "ran") == "ran"
