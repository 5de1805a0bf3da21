"""Certificates that we present: loaded, or said in one sentence why they cannot be."""

import re
import ssl

from proxy.config.files import SECRET_BYTES, Unreadable, read_regular

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----(?:\s*(Proc-Type: 4,ENCRYPTED))?")


class Unfit(Exception):
    """A certificate, or its key, cannot be used; the message says which of the two, and why."""


def load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Have *context* present the chain in the file *certificate*, with the key in the file *key*.

    Raises `Unfit`. Neither what is in the files is quoted nor their names, which a variable may hold.
    """
    chain, secret = _read("certificate", certificate), _read("key", key)
    try:
        certificates = b"\n".join(_CERTIFICATE.findall(chain)).decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError):
        raise Unfit("`certificate` is not a certificate in PEM form") from None
    found = _KEY.search(secret)
    if found is None:
        raise Unfit("`key` is not a private key in PEM form")
    if found[1] == b"ENCRYPTED " or found[2]:
        raise Unfit("`key` has a passphrase, and there is nobody to ask for it")
    try:
        context.load_cert_chain(certificate, key, password="")  # else it would be asked for
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "`key` does not belong to `certificate`"
        else:
            why = f"`key` cannot be used with `certificate`: {_said(error)}"
        raise Unfit(why) from None
    except (OSError, ValueError):  # it has changed meanwhile
        raise Unfit("`key` cannot be used") from None


def _read(what: str, file: str) -> bytes:
    try:
        return read_regular(file, SECRET_BYTES)
    except Unreadable as error:
        raise Unfit(f"`{what}` cannot be read: {error}") from None


def _said(error: ssl.SSLError) -> str:
    return (error.reason or "it is damaged").lower().replace("_", " ")
