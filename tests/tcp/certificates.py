"""Certificates made for a test, by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import attrs
import pytest


@attrs.frozen
class Certificate:
    """A certificate that vouches for itself, and its key."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this certificate alone."""
        return ssl.create_default_context(cafile=self.certificate)


def make_certificate(directory: Path, name: str = "localhost") -> Certificate:
    """Make one for a name, localhost and 127.0.0.1; without the openssl command the test is skipped."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is not installed: there is no certificate to test with")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
    names = ["-addext", f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [openssl, *command.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    return Certificate(certificate, key)
