"""What a Dockerfile offers: `--call=outline` and `--call=targets`. The expectations are BuildKit's answers."""

from __future__ import annotations

from guest_agent.build.describe import outline, targets

TEXT = """# VERSION is taken over
ARG VERSION=1
ARG ELSEWHERE
# one builds
FROM --platform=$BUILDPLATFORM image:$VERSION AS one
ARG VERSION
# no words of this
ARG LOCAL=a-$VERSION \\
    OTHER
RUN --mount=type=ssh,id=key,required true
FROM scratch
COPY --from=one / /
"""


def test_outline() -> None:
    found = outline(TEXT, "", {"OTHER": "given"}, "linux/arm64", "linux/amd64")
    assert "name" not in found
    assert [
        (each["name"], each.get("value"), each["location"]["ranges"][0]["start"]["line"])
        for each in found["args"]
    ] == [
        ("VERSION", "1", 2),
        ("LOCAL", "a-1", 8),
        ("OTHER", "given", 8),
    ]
    assert found["args"][0]["description"] == "is taken over"
    assert "description" not in found["args"][1]
    assert found["ssh"] == [
        {
            "name": "key",
            "required": True,
            "location": {"ranges": [{"start": {"line": 10}, "end": {"line": 10}}]},
        }
    ]
    assert "secrets" not in found


def test_targets() -> None:
    one, last = targets(TEXT)["targets"]
    assert (one["name"], one["description"], one["base"]) == ("one", "builds", "image:$VERSION")
    assert one["platform"] == "$BUILDPLATFORM"
    assert "default" not in one
    assert (last["default"], last["base"]) == (True, "scratch")
