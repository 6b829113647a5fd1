"""Who signed some bytes, and whether that one is trusted here: `ssh-keygen -Y`, which every JetPack has.

The keys are those that engineers have anyway, in a file, an agent or a token. The list of who is trusted is
the machine's own, and must be out of other users' reach. ssh-keygen reads a signature with blanks put in as
well; here only the bytes that it writes are taken, so that a changed byte is never overlooked.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import subprocess
from pathlib import Path

from ..errors import RefusedError
from ..sealed import sealed_bytes

NAMESPACE = "deadweight-bundle"
_ROOT = Path("/")


def signer_of(data: bytes, signature: bytes, signers: Path, *, given: bool, root: Path) -> str:
    """Who signed these bytes, by the name that `signers` gives them.

    `given`: the list was named by hand, and may be the user's own; else only root may be able to write it.

    Raises:
        RefusedError: with the reason.
    """
    if not _is_canonical(signature):
        raise RefusedError("The signature is not whole: it was changed or cut.", "Get the bundle again.")
    if not signers.exists():
        raise RefusedError(
            f"This machine trusts nobody yet: there is no {signers}.",
            "Write the release key into it, as root: NAME namespaces="
            f'"{NAMESPACE}" and the public key, on one line.',
        )
    _owned(signers, root=root, given=given)
    with sealed_bytes("signature", signature) as held:
        named = _named(signature, signers)
        # The usual case in one call; all that follows only finds out why not.
        if named and _is_by(named, data, held, signers):
            return named
        shown = _keygen(data, "check-novalidate", "-n", NAMESPACE, "-s", str(held))
        if shown.returncode:
            raise RefusedError(
                "The signature does not fit the manifest: one of them was changed after signing, or it was "
                f"signed for another purpose than {NAMESPACE}.",
                "Get the bundle again from who made it.",
            )
        key = re.search(rb"SHA256:\S+", shown.stdout)
        fingerprint = key.group().decode("ascii", "replace") if key else "an unknown key"
        listed = _keygen(b"", "find-principals", "-s", str(held), "-f", str(signers))
        for name in listed.stdout.decode("utf-8", "replace").splitlines() if listed.returncode == 0 else ():
            if _is_by(name, data, held, signers):
                return name
    raise RefusedError(
        f"The bundle is signed by {fingerprint}, who is not trusted here (or no longer, or not for bundles).",
        f'If that key is yours, add it to {signers} with namespaces="{NAMESPACE}".',
    )


def _is_by(name: str, data: bytes, signature: Path, signers: Path) -> bool:
    """Whether ssh-keygen takes the signature for that of `name`, who may sign bundles, and may today."""
    options = ("-I", name, "-n", NAMESPACE, "-s", str(signature), "-f", str(signers))
    return _keygen(data, "verify", *options).returncode == 0


def _named(signature: bytes, signers: Path) -> str:
    """The plain name beside the signature's key in the list; empty where it takes more to find. A guess."""
    blob = base64.b64decode(b"".join(signature.splitlines()[1:-1]))
    size = int.from_bytes(blob[10:14], "big")
    key = base64.b64encode(blob[14 : 14 + size])
    for line in signers.read_bytes().splitlines():
        words = line.split()
        if key in words[1:] and re.fullmatch(rb"[A-Za-z0-9@._+-]+", words[0]):
            return words[0].decode()
    return ""


def _keygen(data: bytes, action: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", action, *options], input=data, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(
            f"The signature cannot be checked: ssh-keygen does not run here ({error}).",
            "sudo apt install openssh-client (8.2 or newer)",
        ) from error


def _is_canonical(signature: bytes) -> bool:
    """Whether these are the bytes that ssh-keygen wrote. It reads others too, with spaces put in, say."""
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
    # The version is not signed over, and ssh-keygen takes 0 for 1.
    return blob.startswith(b"SSHSIG\x00\x00\x00\x01") and base64.b64encode(blob) == plain


def _owned(signers: Path, *, root: Path, given: bool) -> None:
    """The list of signers, and every directory above it, must be out of other users' reach."""
    # On a board's real root only root may write it. A list that was named by hand may be the user's own.
    trusted = {0} if root == _ROOT and not given else {0, os.getuid()}
    for place in (signers.resolve(), *signers.resolve().parents):
        state = place.stat()
        others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if state.st_uid not in trusted or (others and not state.st_mode & stat.S_ISVTX):
            raise RefusedError(
                f"{signers} says whom to trust, but {place} can be changed by others than root.",
                f"As root: chown root:root {place} && chmod go-w {place}",
            )
