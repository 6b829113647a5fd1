"""The agent's commands about releases: verify, install, rollback."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, Tuple

from ..errors import ArtifactError

Answer = Tuple[int, Dict[str, Any]]


def verify(given: argparse.Namespace) -> Answer:
    """Whether a bundle or an update file may be installed here; exit code 1 where its golden outputs fail."""
    from ..release.versions import check_expiry

    patch = bundle = None
    if given.bundle.is_file():
        from ..release.patch import open_patch

        patch = open_patch(given.bundle, root=given.root)
        signed = patch.signed
    else:
        from ..release.trust import verify as checked

        bundle = checked(given.bundle, root=given.root)
        signed = bundle.signed
    told: Dict[str, Any] = {
        "base": patch.base if patch else None,
        **{key: signed.manifest[key] for key in ("name", "target", "release", "expires")},
        "version": signed.version,
        "signer": signed.signer,
        "files": len(signed.files),
        "bytes": sum(entry.size_bytes for entry in signed.files.values()),
        "clock": check_expiry(signed.manifest),
    }
    if not given.golden or bundle is None:
        return 0, told
    from ..release.self_test import rehearse

    found = rehearse(bundle, threads=given.threads)
    told["golden"] = found.to_json()
    return int(not found.holds), told


def install(given: argparse.Namespace) -> Answer:
    """Puts a release in use, from files that lie here or have been sent one by one."""
    from ..release.install import install as put
    from .received_files import staged

    if given.files is not None:
        with staged(json.loads(given.files), given.cache) as folder:
            return 0, put(folder, given.place, root=given.root, tried=not given.untried)
    if given.bundle is None:
        raise ArtifactError("Nothing to install was named.", "Give a bundle's directory or an update file.")
    return 0, put(given.bundle, given.place, root=given.root, tried=not given.untried)


def rollback(given: argparse.Namespace) -> Answer:
    """Goes back to the release before."""
    from ..release.install import rollback as back

    return 0, back(given.name, given.place, root=given.root, only_if_wrong=given.if_wrong)
