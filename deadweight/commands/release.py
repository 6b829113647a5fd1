"""The commands about releases: verify, delta, handover, camera, install and rollback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..targets.errors import ArtifactError, RefusedError
from ..terminal.options import On, Precision
from ..terminal.printer import out
from ..terminal.tables import bar, explain

Place = Annotated[str | None, Option(help="Directory on the board; default: in the home.")]


def verify(
    bundle: Annotated[Path, Argument(help="A bundle's directory, or an update file.")],
    signers: Annotated[
        Path | None, Option(help="The trusted signers; default: /etc/deadweight/allowed_signers.")
    ] = None,
) -> None:
    """Check whether a bundle may be installed here: signature, hashes, expiry, and its board.

    Exit code: 0 accepted, 1 refused, with the reason.
    """
    from ..targets.release.patch import Patch, open_release
    from ..targets.release.versions import check_expiry

    with _refusing(bundle):
        release = open_release(bundle, signers=signers)
        signed, manifest = release.signed, release.signed.manifest
        clock = check_expiry(manifest)
    out.say(("Trusted:", "green"), f" {manifest.name} {signed.version}, signed by {signed.signer}")
    until = f", until {manifest.expires}" if manifest.expires else ""
    out.say(f"Release {manifest.release}{until}; {len(signed.files)} files, for {manifest.target}")
    if isinstance(release, Patch):
        out.say(
            f"It starts from {release.base[:16]}." if release.base else "It needs no release to start from."
        )
    _print_clock(clock)


def delta(
    bundles: Annotated[
        list[Path], Argument(metavar="[OLD] NEW", help="Two releases of one network, or the new one.")
    ],
    to: Annotated[Path, Option("--out", "-o", help="The file.")],
    ota_bytes: Annotated[int | None, Option(min=0, help="Budget: the largest size in bytes.")] = None,
) -> None:
    """Write the update to send over the air, as one file: the delta between two releases, or a full one.

    `deadweight install FILE --on USER@HOST` installs it. Exit code: 1 it is larger than --ota-bytes.
    """
    from ..export.release.delta import delta as make

    if len(bundles) > 2:
        raise ArtifactError(f"{len(bundles)} bundles were given.", "Give OLD and NEW, or NEW alone.")
    with _refusing():
        made = make(bundles[0] if len(bundles) == 2 else None, bundles[-1], to)
    out.say(
        f"{made.path}: {made.bytes:,} bytes for {made.unpacked_bytes:,} "
        f"({100 * made.bytes / max(made.unpacked_bytes, 1):.1f} %)"
    )
    if ota_bytes is not None and made.bytes > ota_bytes:
        out.say(("Over the budget:", "red"), f" ota_bytes {ota_bytes:,}")
        raise typer.Exit(1)


def handover(
    bundle: Annotated[Path, Argument(help="A bundle's directory.")],
    destination: Annotated[str, Option("--to", help="deepstream, triton or trtexec.")],
    to: Annotated[Path | None, Option("--out", "-o", help="The folder; default: beside the bundle.")] = None,
    batch: Annotated[int, Option(min=1, help="The largest batch, if the model's is dynamic.")] = 1,
    precision: Precision = "fp16",
    dla_core: Annotated[int | None, Option(help="A DLA core, with the bundle's calibration.cache.")] = None,
    parser: Annotated[
        str, Option(metavar="LIB:FUNCTION", help="DeepStream's parser of your detector's outputs.")
    ] = "",
) -> None:
    """Write what DeepStream, Triton or trtexec want beside a bundle's network."""
    from ..export.release.handover import handover as write

    place = to or bundle.with_name(f"{bundle.name}.{destination}")
    for path in write(
        bundle, place, to=destination, batch=batch, precision=precision, dla_core=dla_core, parser=parser
    ):
        out.say(str(path))


def camera(
    model: Annotated[Path, Argument(help="The network, as ONNX, with one float image as its input.")],
    preprocessing: Annotated[
        Path, Option(metavar="FILE.toml", help="mean, std and scale: docs/handover.md.")
    ],
    to: Annotated[Path, Option("--out", "-o", help="The file.")],
) -> None:
    """Give a network camera input: uint8 pixels, with the normalization folded into it where exact."""
    from ..export.onnx_graph.camera_input import read_preprocessing, with_camera_input
    from ..export.onnx_graph.graph import load, save

    made, folded = with_camera_input(load(model), read_preprocessing(preprocessing))
    save(made.proto, to)
    out.say(f"The network: {to}. Folded into its first convolution: {folded}.")


def install(
    bundle: Annotated[Path, Argument(help="A bundle's directory, or an update file.")],
    on: On = None,
    place: Place = None,
    untried: Annotated[bool, Option("--untried", help="Do not run it on its golden inputs first.")] = False,
) -> None:
    """Verify a release on a board by the board's own list of signers, test it, and put it in use.

    Exit code: 0 installed, 1 refused, with the reason; the release in use stays then.
    """
    from ..targets.remote.board import install_on
    from ..targets.remote.exchange import reading
    from ..targets.remote.ssh import connected

    with _refusing(bundle), bar() as shown, connected(on or "local", shown) as there:
        installed = install_on(there, bundle, place=place, tried=not untried)
    with reading(on or "local"):
        _print_installed(installed)
        if installed["golden"]:
            golden = installed["golden"]
            out.say(
                f"Its outputs are those expected ({100 * golden['furthest']:.2g} % off, "
                f"{100 * golden['tolerance']:.2g} % allowed), by {golden['runtime']}."
            )
        if installed["previous"]:
            out.say(f"Before it: {installed['previous']} (deadweight rollback {installed['name']})")
        _print_clock(str(installed["clock"]))


def rollback(
    name: str,
    on: On = None,
    place: Place = None,
    if_wrong: Annotated[
        bool, Option("--if-wrong", help="Only if the release in use does not give its golden outputs.")
    ] = False,
) -> None:
    """Return to the release before; a second rollback returns to the newer one.

    Exit code: 0 done, or nothing to do; 1 the release before is not trusted any more.
    """
    from ..targets.remote.board import rollback_on
    from ..targets.remote.exchange import reading
    from ..targets.remote.ssh import connected

    with _refusing(), bar() as shown, connected(on or "local", shown) as there:
        restored = rollback_on(there, name, place=place, only_if_wrong=if_wrong)
    with reading(on or "local"):
        if restored["kept"]:
            out.say("Nothing to do: the release in use gives its golden outputs.")
        _print_installed(restored)


@contextlib.contextmanager
def _refusing(bundle: Path | None = None) -> Iterator[None]:
    """An untrusted bundle ends with exit code 1; a missing one is bad input, 2."""
    if bundle is not None and not bundle.exists():
        raise ArtifactError(f"{bundle} does not exist.", "Give a bundle's directory, or an update file.")
    try:
        yield
    except RefusedError as error:
        explain(error.what, error.cure)
        raise typer.Exit(1) from error


def _print_installed(release: dict[str, Any]) -> None:
    name = f"{release['name']} release {release['release']}"
    path = release["path"]
    out.say(("In use:", "green"), f" {name} ({release['version']}): {path}")


def _print_clock(remark: str) -> None:
    if remark:
        out.say(remark)
