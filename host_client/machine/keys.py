"""Each machine's own certificates: whoever reaches the engine's port on the host's loopback must have one.

Containers can reach that port too (the class of CVE-2025-9074), and so can other users of the host: only a
key that is readable by this user opens it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os

from host_client.machine.layout import write_whole

SERVER_NAME = "wherry"
LIFETIME = datetime.timedelta(days=3650)
FILES = ("ca.pem", "server.pem", "server-key.pem", "cert.pem", "key.pem")  # the last two: docker's names


def make_keys(folder: str, machine: str) -> None:
    """Writes a CA that signs one server and one client and is then forgotten;

    nothing else can ever be signed by it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def _signs_certificates() -> x509.KeyUsage:
        others = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment"]
        others += ["key_agreement", "crl_sign", "encipher_only", "decipher_only"]
        return x509.KeyUsage(key_cert_sign=True, **dict.fromkeys(others, False))

    def name(what: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, what)])

    # The guest's clock may be behind the host's until it is set.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = name(f"wherry machine {machine}")

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + LIFETIME)
        )

    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    ca = (
        certificate(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write_whole(os.path.join(folder, "ca.pem"), ca.public_bytes(pem))
    alternatives = x509.SubjectAlternativeName(
        [
            x509.DNSName("localhost"),
            x509.DNSName(SERVER_NAME),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )
    for file, usage in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
        ("cert", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            certificate(name(SERVER_NAME if file == "server" else "wherry client"), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if file == "server":
            builder = builder.add_extension(alternatives, critical=False)
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key_file = "server-key.pem" if file == "server" else "key.pem"
        write_whole(os.path.join(folder, key_file), private, 0o600)
        write_whole(
            os.path.join(folder, f"{file}.pem"), builder.sign(ca_key, hashes.SHA256()).public_bytes(pem)
        )
