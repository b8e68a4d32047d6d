"""The key sequence that detaches from a container: `ctrl-p,ctrl-q` unless the user chose another."""

from __future__ import annotations

DEFAULT_KEYS = b"\x10\x11"
_CONTROLS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_keys(text: str) -> bytes:
    """The bytes of `a`, `ctrl-x` and so on, with commas between them.

    Raises:
        ValueError: a part is no key.
    """
    keys = bytearray()
    for part in text.split(","):
        if len(part) == 1 and part.isascii():
            keys.append(ord(part))
            continue
        prefix, _, key = part.partition("-")
        if prefix != "ctrl" or len(key) != 1 or not (key in _CONTROLS or "a" <= key <= "z"):
            raise ValueError(f"unknown character: '{part}'")
        keys.append(_CONTROLS[key] if key in _CONTROLS else ord(key) - ord("a") + 1)
    return bytes(keys)


class KeyFilter:
    """Looks for the sequence in what the user types; held-back keys are let go when the next one does not
    fit.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on; sets `detached` when the sequence is complete, after which nothing passes."""
        passed = bytearray()
        if self.detached:
            return b""
        for byte in data:
            if self._matched < len(self._keys) and byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self.detached = True
                    return bytes(passed)
                continue
            passed += self._keys[: self._matched]
            self._matched = 0
            if self._keys and byte == self._keys[0]:
                self._matched = 1
            else:
                passed.append(byte)
        return bytes(passed)
