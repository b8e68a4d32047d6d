"""What the agent does not load, to stay small."""

from __future__ import annotations

import subprocess
import sys

from tests.support.cli import REPOSITORY

FETCH = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from guest_agent.serve import without_charset_detection
without_charset_detection()
import guest_agent.images.registry
import requests
response = requests.Response()
response._content = "naïve".encode()
assert response.text == "naïve"
print(*(name for name, module in sys.modules.items() if module is not None))
"""


def test_no_charset_detection_where_images_are_fetched() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", FETCH], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = done.stdout.split()
    assert "requests" in loaded
    assert not [name for name in loaded if name.startswith(("chardet", "charset_normalizer"))]
