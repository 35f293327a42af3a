"""The key that signs marks, and its certificates: those that were named, or of this machine's own.

C2PA's profile of a certificate: digitalSignature alone, an extended use, the identifiers of both
keys, and no self-signed leaf. So a certificate of one's own is a leaf below a root.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foley.errors import ConfigError
from foley.marks.manifest import check_signer
from foley.marks.mark import Algorithm, Signer

FILE_NAME = "marks.pem"
MAX_FILE_BYTES = 1 << 20
_OWN_NAME = "foley, self-signed"
_VALID = timedelta(days=3650)
_SPARE = timedelta(days=30)  # a certificate of one's own that ends sooner is made again
_CURVES: dict[str, tuple[Algorithm, hashes.HashAlgorithm, int]] = {
    "secp256r1": ("Es256", hashes.SHA256(), 32),
    "secp384r1": ("Es384", hashes.SHA384(), 48),
    "secp521r1": ("Es512", hashes.SHA512(), 66),
}
_MIN_RSA_BITS = 2048


def load_signer(key: Path | None, chain: Path | None) -> Signer:
    """Return the signer of a key and its certificates.

    Args:
        key: file of a private key in PEM, without a password: P-256, P-384, P-521, RSA or Ed25519.
        chain: file of certificates in PEM, that of the key first.

    Raises:
        ConfigError: one of both is missing, cannot be read, does not belong to the other, or is not
            what C2PA asks for.
    """
    if key is None or chain is None:
        given, missing = ("key", "chain") if chain is None else ("chain", "key")
        raise ConfigError(f"a {given} for marks needs a {missing} too; name the files of both")
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{key} holds no private key in PEM that can be read ({error}); give one without a "
            "password"
        ) from error
    certificates = _read_certificates(chain)
    if private.public_key() != certificates[0].public_key():
        raise ConfigError(
            f"{key} is not the key of the first certificate in {chain}; put the certificate of "
            "the key first"
        )
    signer = _make_signer(private, certificates)
    if problem := check_signer(signer):
        raise ConfigError(f"marks cannot be signed with {key} and {chain}: {problem}")
    return signer


def load_own_signer(folder: Path | None) -> Signer:
    """Return a signer with a certificate of its own, which the first caller makes.

    If the folder cannot be written, the certificate lives as long as this process.

    Args:
        folder: made if missing, for this user alone. None to keep nothing.
    """
    if folder is None:
        return _parse_own(_make_own())
    path = folder / FILE_NAME
    if (signer := _read_own(path)) is not None:
        return signer
    content = _make_own()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Renamed when it is complete, so that nobody reads a part of it. Of several processes that
        # make one at a time, the last one's stays, and what the others sign is as valid.
        descriptor, unnamed = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unnamed, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unnamed)
    return _read_own(path) or _parse_own(content)


def read_certificates(path: Path) -> str:
    """Return the certificates of a file in PEM, without anything else in it.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or has none.
    """
    return _write_chain(_read_certificates(path))


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificates in PEM ({error})") from error


def _write_chain(certificates: list[x509.Certificate]) -> str:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates).decode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _read_own(path: Path) -> Signer | None:
    """Return the signer of a file; None if there is none, or it ends soon."""
    try:
        signer = _parse_own(path.read_bytes())
        leaf = x509.load_pem_x509_certificates(signer.chain.encode())[0]
    except (OSError, ValueError):
        return None
    return signer if leaf.not_valid_after_utc > datetime.now(UTC) + _SPARE else None


def _parse_own(content: bytes) -> Signer:
    key = serialization.load_pem_private_key(content, password=None)
    return _make_signer(key, x509.load_pem_x509_certificates(content), is_own=True)


def _make_own() -> bytes:
    """Return a new key, its certificate and its root, in PEM. The root's key is forgotten."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = (
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, text),
                x509.NameAttribute(NameOID.COMMON_NAME, text),
            ]
        )
        for text in (f"{_OWN_NAME} root", _OWN_NAME)
    )

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=root_name, public_key=public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))  # for clocks that are late
            .not_valid_after(now + _VALID)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    root = (
        build(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_allow("key_cert_sign", "crl_sign"), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    leaf = (
        build(name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_allow("digital_signature"), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
        .add_extension(authority, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + _write_chain([leaf, root]).encode()


def _allow(*uses: str) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in uses for name in names})


def _make_signer(
    key: PrivateKeyTypes, certificates: list[x509.Certificate], *, is_own: bool = False
) -> Signer:
    algorithm, sign = _choose_algorithm(key)
    names = certificates[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Signer(
        chain=_write_chain(certificates),
        algorithm=algorithm,
        sign=sign,
        name=str(names[0].value) if names else certificates[0].subject.rfc4514_string(),
        is_own=is_own,
    )


def _choose_algorithm(key: PrivateKeyTypes) -> tuple[Algorithm, Callable[[bytes], bytes]]:
    """Return the algorithm of a key, and what signs with it as COSE wants signatures."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        curve_key, (name, digest, size) = key, _CURVES[key.curve.name]

        def sign_on_curve(data: bytes) -> bytes:
            numbers = decode_dss_signature(curve_key.sign(data, ec.ECDSA(digest)))
            return b"".join(number.to_bytes(size, "big") for number in numbers)

        return name, sign_on_curve
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "Ed25519", key.sign
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        rsa_key = key
        digest = hashes.SHA256()
        scheme = padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)
        return "Ps256", lambda data: rsa_key.sign(data, scheme, hashes.SHA256())
    raise ConfigError(
        "the key for marks is of a kind that C2PA does not take; give one on P-256, P-384 or "
        f"P-521, an Ed25519 key, or an RSA key of {_MIN_RSA_BITS} bits or more"
    )
