"""A token server for a registry: the bearer-token scheme of the distribution specification.

https://distribution.github.io/distribution/spec/auth/token/ and …/jwt/. Anybody may pull from `public/…`; the
rest needs the user's name and password.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.support.certificates import Authority

ISSUER = "wherry-test-issuer"
SERVICE = "wherry-test-registry"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Serves `http://127.0.0.1:PORT/token`; `requests` has each request's query and if it was `known`."""

    def __init__(self, directory: Path, user: str, password: str, lifetime: int = 300) -> None:
        """`lifetime`: seconds until a token expires."""
        self.credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.lifetime = lifetime
        self.requests: list[dict[str, Any]] = []
        authority = Authority(directory, "Wherry token signer")
        self.bundle = authority.path
        self.chain = [
            base64.b64encode(authority.certificate.public_bytes(serialization.Encoding.DER)).decode()
        ]
        self.key = authority.key
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self.server.server_address[1]}/token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        header = handler.headers.get("Authorization", "")
        known = header == f"Basic {self.credentials}"
        self.requests.append(query | {"known": known})
        if header and not known:
            self._send(handler, 401, {"errors": [{"code": "UNAUTHORIZED", "message": "bad password"}]})
            return
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.rsplit(":", 2) if scope.count(":") >= 2 else ("", "", "")
            allowed = set(actions.split(",")) if known else {"pull"} & set(actions.split(","))
            if known or name.startswith("public/"):
                access.append({"type": kind, "name": name, "actions": sorted(allowed)})
        self._send(handler, 200, {"token": self.token(access), "expires_in": self.lifetime})

    def token(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": self.chain}
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": now + self.lifetime,
            "nbf": now - 10,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _send(self, handler: BaseHTTPRequestHandler, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
