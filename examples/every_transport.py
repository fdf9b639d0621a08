"""One echo app on every transport at once, and a client that talks to it over each.

    python examples/every_transport.py [--cert cert.pem --key key.pem]

It listens on free ports of this machine, prints a line for each transport, and ends. quic and h3 need
pip install 'gws_gevent[quic]', kcp needs pip install 'gws_gevent[kcp]'; what is not installed is left out. Without --cert it makes
a certificate for an hour, with the package `cryptography`, which both of them bring.
"""

import argparse
import datetime
import ipaddress
import sys
import tempfile
import time
from pathlib import Path

from gws_gevent import (
    Connection,
    GwsError,
    ListenSettings,
    MissingExtra,
    Server,
    TlsFiles,
    client_context,
    connect,
)


def echo(conn: Connection) -> None:
    """The app. It does not know, and need not know, what carries its connection; `conn.stream.info("scheme")` would tell."""
    for message in conn:
        conn.send(message)


def endpoints(folder: Path) -> list[str]:
    local = "127.0.0.1:0"
    return [f"tcp://{local}", f"tls://{local}", f"unix:{folder}/echo.sock", f"quic://{local}", f"h3://{local}", f"kcp://{local}"]


def url_of(address: str) -> str:
    """Return the URL of a WebSocket on a listener's address."""
    scheme, _, rest = address.partition(":")
    known = {"tcp": "ws", "tls": "wss", "quic": "wss+quic", "h3": "wss+h3", "kcp": "ws+kcp", "unix": "ws+unix"}
    return f"{known[scheme]}:{rest}:/" if scheme == "unix" else f"{known[scheme]}:{rest}/"


def start(server: Server, endpoint: str, settings: ListenSettings) -> bool:
    try:
        server.start(endpoint, settings=settings)
    except MissingExtra as error:
        print(f"{endpoint.partition(':')[0]:<5}left out: {error}", flush=True)
        return False
    return True


def talk(address: str, ca: str) -> str:
    """Open a WebSocket, say hello a hundred times, and tell how long an answer took."""
    with connect(url_of(address), ssl_context=client_context(ca)) as conn:
        scheme, taken = conn.stream.info("scheme"), []
        for number in range(100):
            began = time.perf_counter()
            conn.send(f"hello {number} over {scheme}")
            answer = conn.receive(timeout=10)
            taken.append(time.perf_counter() - began)
        return f"{scheme:<5}{answer!r} after {sorted(taken)[50] * 1000:.2f} ms (median), {address}"


def make_certificate(folder: Path) -> TlsFiles:
    """Make a certificate for this machine, which is its own authority. For real ones see docs/operations.md."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **dict.fromkeys(others.split(), False))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return TlsFiles(str(folder / "cert.pem"), str(folder / "key.pem"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cert", help="certificate for this machine, its own authority, PEM (docs/transports.md)")
    parser.add_argument("--key", help="its key, PEM")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Server(echo) as server:
        folder = Path(name)
        try:
            files = TlsFiles(args.cert, args.key) if args.cert else make_certificate(folder)
            settings = ListenSettings(tls=files)
            for endpoint in endpoints(folder):
                start(server, endpoint, settings)
            for address in server.addresses:
                print(talk(address, files.cert), flush=True)
        except ImportError:
            print("without the package cryptography a certificate is needed: --cert and --key", file=sys.stderr)
            return 1
        except (GwsError, TimeoutError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
