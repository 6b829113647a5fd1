"""The check of a signature and its signer, by `ssh-keygen -Y`, which every JetPack has.

Keys are ssh keys, in a file, an agent or a token. The list of trusted signers belongs to the machine, and
other users must not be able to write it. ssh-keygen also accepts a signature with added blanks; here only the
bytes that it writes are accepted, so that a changed byte is always detected.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import subprocess
from pathlib import Path

from ..errors import RefusedError, reported
from ..sealed import sealed_bytes

NAMESPACE = "deadweight-bundle"
_ROOT = Path("/")


def signer_of(data: bytes, signature: bytes, signers: Path, *, given: bool, root: Path) -> str:
    """The name in `signers` of the key that signed these bytes.

    `given`: the user chose the list, which may be their own; otherwise only root may be able to write it.
    """
    if not _is_canonical(signature):
        raise RefusedError("The signature is invalid: it was changed or truncated.", "Get the bundle again.")
    if not signers.exists():
        raise RefusedError(
            f"This machine trusts no signer yet: {signers} does not exist.",
            "Write the release key into it, as root: NAME namespaces="
            f'"{NAMESPACE}" and the public key, on one line.',
        )
    _check_owner(signers, root=root, given=given)
    with sealed_bytes("signature", signature) as sealed:
        signer = _guess_signer(signature, signers)
        # The usual case in one call; the rest finds the reason for a failure.
        if signer and _is_by(signer, data, sealed, signers):
            return signer
        shown = _keygen(data, "check-novalidate", "-n", NAMESPACE, "-s", str(sealed))
        if shown.returncode:
            raise RefusedError(
                "The signature does not match the manifest: one of them was changed after signing, or it was "
                f"signed for another purpose than {NAMESPACE}.",
                "Get the bundle again from its maker.",
            )
        key = re.search(rb"SHA256:\S+", shown.stdout)
        fingerprint = key.group().decode("ascii", "replace") if key else "an unknown key"
        listed = _keygen(b"", "find-principals", "-s", str(sealed), "-f", str(signers))
        for name in listed.stdout.decode("utf-8", "replace").splitlines() if listed.returncode == 0 else ():
            if _is_by(name, data, sealed, signers):
                return name
    raise RefusedError(
        f"The bundle is signed by {fingerprint}, not trusted here (or no longer, or not for bundles).",
        f'If that key is yours, add it to {signers} with namespaces="{NAMESPACE}".',
    )


def _is_by(name: str, data: bytes, signature: Path, signers: Path) -> bool:
    """Whether ssh-keygen accepts the signature as that of `name`, with a key valid today for bundles."""
    options = ("-I", name, "-n", NAMESPACE, "-s", str(signature), "-f", str(signers))
    return _keygen(data, "verify", *options).returncode == 0


def _guess_signer(signature: bytes, signers: Path) -> str:
    """A guess of the signer: the plain name beside the signature's key in the list, or ""."""
    blob = base64.b64decode(b"".join(signature.splitlines()[1:-1]))
    size = int.from_bytes(blob[10:14], "big")
    key = base64.b64encode(blob[14 : 14 + size])
    for line in signers.read_bytes().splitlines():
        words = line.split()
        if key in words[1:] and re.fullmatch(rb"[A-Za-z0-9@._+-]+", words[0]):
            return words[0].decode()
    return ""


def _keygen(data: bytes, action: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    what = "The signature cannot be checked, since ssh-keygen does not run here"
    cure = "sudo apt install openssh-client (8.2 or newer)"
    with reported(RefusedError, what, cure, OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            ["ssh-keygen", "-Y", action, *options], input=data, capture_output=True, timeout=30, check=False
        )


def _is_canonical(signature: bytes) -> bool:
    """Whether these are exactly the bytes that ssh-keygen writes; it also reads others, as with blanks."""
    found = re.fullmatch(
        rb"-----BEGIN SSH SIGNATURE-----\n((?:[A-Za-z0-9+/]{70}\n)*[A-Za-z0-9+/]{1,70}={0,2}\n)"
        rb"-----END SSH SIGNATURE-----\n",
        signature,
    )
    if found is None:
        return False
    plain = found.group(1).replace(b"\n", b"")
    try:
        blob = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        return False
    # The version is not signed, and ssh-keygen accepts 0 as 1.
    return blob.startswith(b"SSHSIG\x00\x00\x00\x01") and base64.b64encode(blob) == plain


def _check_owner(signers: Path, *, root: Path, given: bool) -> None:
    """Refuses a list of signers that other users can write, by itself or by a directory above it."""
    # On the real root only root may own it. A list that the user chose may be the user's own.
    trusted = {0} if root == _ROOT and not given else {0, os.getuid()}
    for place in (signers.resolve(), *signers.resolve().parents):
        state = place.stat()
        others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if state.st_uid not in trusted or (others and not state.st_mode & stat.S_ISVTX):
            raise RefusedError(
                f"{signers} has the trusted signers, but {place} can be changed by users other than root.",
                f"As root: chown root:root {place} && chmod go-w {place}",
            )
