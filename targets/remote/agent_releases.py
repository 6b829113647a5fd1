"""The agent's commands for releases: verify, install, rollback."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, Tuple

from ..errors import ArtifactError

Answer = Tuple[int, Dict[str, Any]]


def verify(options: argparse.Namespace) -> Answer:
    """Whether a bundle or an update file may be installed here; exit code 1 where its golden test fails."""
    from ..release.versions import check_expiry

    patch = bundle = None
    if options.bundle.is_file():
        from ..release.patch import open_patch

        patch = open_patch(options.bundle, root=options.root)
        signed = patch.signed
    else:
        from ..release.trust import verify as checked

        bundle = checked(options.bundle, root=options.root)
        signed = bundle.signed
    facts: Dict[str, Any] = {
        "base": patch.base if patch else None,
        **{key: signed.manifest[key] for key in ("name", "target", "release", "expires")},
        "version": signed.version,
        "signer": signed.signer,
        "files": len(signed.files),
        "bytes": sum(entry.size_bytes for entry in signed.files.values()),
        "clock": check_expiry(signed.manifest),
    }
    if not options.golden or bundle is None:
        return 0, facts
    from ..release.self_test import rehearse

    result = rehearse(bundle, threads=options.threads)
    facts["golden"] = result.to_json()
    return int(not result.holds), facts


def install(options: argparse.Namespace) -> Answer:
    """Installs a release, from files that are here or were sent one by one."""
    from ..release.install import install as put
    from .received_files import staged

    if options.files is not None:
        with staged(json.loads(options.files), options.cache) as folder:
            return 0, put(folder, options.place, root=options.root, tried=not options.untried)
    if options.bundle is None:
        raise ArtifactError("There is nothing to install.", "Give a bundle's directory or an update file.")
    return 0, put(options.bundle, options.place, root=options.root, tried=not options.untried)


def rollback(options: argparse.Namespace) -> Answer:
    """Goes back to the previous release."""
    from ..release.install import rollback as back

    return 0, back(options.name, options.place, root=options.root, only_if_wrong=options.if_wrong)
