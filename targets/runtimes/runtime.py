"""The `Runtime`: how it opens a model file, and all that other folders must know about it.

One file per runtime, `*_runtime.py` in this folder, found by its name; a user's own runtime is a `Runtime` in
the user's file or package, named by a board's TOML or on the command line. These files import libraries, and
numpy, only inside functions: a board without numpy also verifies bundles.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from ..errors import TargetError, module_in, users_code

if TYPE_CHECKING:
    from .session import ProcessTimes, Session

DEFAULT = "onnxruntime"
"""The runtime of files that no other one opens."""
PROCESSORS = ("cpu", "gpu")
FP16 = ("flag", "file")
DIALECTS = ("tensorrt", "x86")


@dataclass(frozen=True)
class Runtime:
    """A software that executes models. Its `str` is its name.

    Raises:
        TargetError: a field has an invalid value.
    """

    name: str
    """As in a board's TOML and in stored protocols: a letter, then letters, digits, `_`, `-`, `.` or `+`."""
    title: str
    """For readers, as in `ONNX Runtime`."""
    library: str
    """The package it needs, by the name Python imports, empty for a program; a board's fact of that name is
    its version there."""
    cure: str
    """The cure where the package is missing, as in `Install it: pip install onnxruntime`."""
    open: Callable[..., Session] = field(compare=False)
    """`open(path, threads=1)` returns a `Session`; it raises ModelError or TargetError."""
    suffixes: Tuple[str, ...] = (".onnx",)
    """Of the files that it opens. Without `.onnx`, a network must be built into such a file on the board."""
    processor: str = "cpu"
    """`cpu`: the calling thread computes, so its CPU time counts. `gpu`: it waits."""
    dialect: str = "x86"
    """Where its Q/DQ pairs must be; `export/quantization/placement.py` has the rules."""
    fp16: Tuple[str, ...] = ()
    """Where FP16 can be chosen: `flag` (of the builder), `file` (cast in the ONNX file); empty: nowhere."""
    time_layers: Optional[Callable[..., Any]] = field(default=None, compare=False)
    """Times layers for a judgement, with the arguments of `timing.ort_layers.time_layers`."""
    time_process: Optional[Callable[..., ProcessTimes]] = field(default=None, compare=False)
    """For a program that times models itself: `time_process(path, protocol=..., inputs=...)` times a file in
    one new process. `timing.clock` starts one for each model and event, in random order."""
    saturates: Optional[Callable[[], bool]] = field(default=None, compare=False)
    """Whether sums of 8-bit weights may overflow in its INT8 kernels on this machine; None: never."""
    ask: Optional[Callable[[], Optional[str]]] = field(default=None, compare=False)
    """Its version, empty if unknown; None where it does not work here. By default `library` is looked for."""
    instead_of: str = ""
    """The runtime in whose place it opens files where that one does not work; see `usable`."""
    variant: Optional[Callable[[Path], str]] = field(default=None, compare=False)
    """The name of a file's runtime, where several runtimes share these suffixes."""
    linted: bool = False
    """Whether `export/lint` has this runtime's tables of operators."""
    fuses: bool = False
    """Whether it concatenates in place and fuses chains and attention; see `export/memory`."""
    sparse_kernels: bool = False
    """Whether it may have kernels for 2:4 sparsity."""
    tolerance: float = 0.01
    """The allowed deviation from ONNX Runtime's outputs on a workstation, as a share of the largest."""
    source: str = ""
    """The source of a user's own runtime, as `/path/file.py:NAME`; empty for a built-in one."""

    def __post_init__(self) -> None:
        faults = [f"name {self.name!r}"] if not re.fullmatch(r"[A-Za-z][\w.+-]{0,63}", self.name) else []
        faults += [f"suffixes {one!r}" for one in self.suffixes if not re.fullmatch(r"\.\w+", one)]
        faults += ["no suffixes"] if not self.suffixes else []
        faults += [f"processor {self.processor!r}"] if self.processor not in PROCESSORS else []
        faults += [f"fp16 {one!r}" for one in self.fp16 if one not in FP16]
        faults += [f"dialect {self.dialect!r}"] if self.dialect not in DIALECTS else []
        if faults:
            raise TargetError(
                f"The runtime {self.title} has {', '.join(faults)}.",
                "A name is letters, digits and _-.+; suffixes look like .onnx; processor is "
                f"{' or '.join(PROCESSORS)}; fp16 is of {', '.join(FP16)}; dialect is one of "
                f"{', '.join(DIALECTS)}.",
            )

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> Tuple[Any, Tuple[str, ...]]:
        return (_loaded, (self.source,)) if self.source else (runtime_named, (self.name,))

    @property
    def base(self) -> str:
        """The name without the choices of how it runs, which follow a `+`."""
        return self.name.partition("+")[0]

    @property
    def builds(self) -> bool:
        """Whether it needs an engine, which runs only where it was built."""
        return ".onnx" not in self.suffixes

    @property
    def code(self) -> Tuple[Path, ...]:
        """The user's file that defines it; empty for a built-in one."""
        place = self.source.rpartition(":")[0]
        return (Path(place if place.endswith(".py") else str(sys.modules[place].__file__)),) if place else ()

    @property
    def installed(self) -> bool:
        """Whether it works here: by `ask`, else whether its package is found, which is not imported."""
        if self.ask is not None:
            return self.ask() is not None
        return not self.library or util.find_spec(self.library) is not None

    @property
    def version(self) -> str:
        """Its version here, or that of its package; empty if unknown."""
        if self.ask is not None:
            return self.ask() or ""
        from ..machine.probe import versions

        return versions(self.library).get(self.library, "")

    def check_installed(self, wanted_by: str) -> None:
        """To be called before anything long runs."""
        if not self.installed:
            raise TargetError(f"{wanted_by} needs {self.title}, which is not installed here.", self.cure)


_OWN: Dict[str, Runtime] = {}
"""The user's own runtimes that this process has loaded, by name."""


@lru_cache(maxsize=2)
def built_in_runtimes(*, variants: bool = False) -> Tuple[Runtime, ...]:
    """The `RUNTIME` of each file of this folder; with `variants`, its other `VARIANTS` too."""
    # Not a directory listing: on a board this package is in a zip file.
    package = sys.modules[__name__.rpartition(".")[0]]
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    found: List[Runtime] = []
    for name in names:
        if name.endswith("_runtime"):
            module = importlib.import_module(f"{package.__name__}.{name}")
            found += [module.RUNTIME, *(getattr(module, "VARIANTS", ()) if variants else ())]
    return tuple(found)


def runtime_named(name: str) -> Runtime:
    """A built-in runtime, or a user's own that was loaded before. It never imports a user's code.

    Raises:
        TargetError: there is no such runtime.
    """
    known = {one.name: one for one in known_runtimes(variants=True)}
    base, _, choices = name.partition("+")
    if name not in known and base in known:
        return with_choices(known[base], f"+{choices}")
    if name not in known:
        raise TargetError(
            f"The runtime '{name}' is unknown here.",
            f"Known: {', '.join(map(str, known_runtimes()))}. Name your own runtime in the TOML of your "
            'board, as "file.py:NAME", and that board by --target or in the recipe.',
        )
    return known[name]


def with_choices(runtime: Runtime, choices: str) -> Runtime:
    """The runtime with choices of how it runs an engine, as in `+graph+block`; see docs/engines.md."""
    if not choices:
        return runtime
    named = {one.name: one for one in known_runtimes(variants=True)}
    if runtime.base + choices not in named:
        raise TargetError(
            f"{runtime.title} does not run with {choices.strip('+').replace('+', ' and ')}.",
            "Omit --cuda-graph, --buffers and --sync: they are choices for TensorRT's engines.",
        )
    return named[runtime.base + choices]


def known_runtimes(*, variants: bool = False) -> Tuple[Runtime, ...]:
    """The built-in runtimes and the user's own that were loaded."""
    return (*built_in_runtimes(variants=variants), *_OWN.values())


def by_suffix(name: object) -> Runtime:
    """The built-in runtime for a file name's suffix, installed or not; `DEFAULT` if there is none."""
    matching = [one for one in built_in_runtimes() if not one.instead_of and str(name).endswith(one.suffixes)]
    return matching[0] if matching else runtime_named(DEFAULT)


def usable(runtime: Runtime) -> Runtime:
    """The runtime, or where it does not work here, one that does and that is declared to take its place."""
    if runtime.installed:
        return runtime
    others = (one for one in known_runtimes(variants=True) if one.instead_of == runtime.name)
    return next((one for one in others if one.installed), runtime)


def is_engine(name: object) -> bool:
    """Whether a file is an engine, by its name."""
    return by_suffix(name).builds


def own_runtime(reference: str, folder: Path = Path()) -> Runtime:
    """Loads a user's own runtime: only one that the user named in a recipe, a board or a command.

    Args:
        reference: `file.py:NAME`, relative to `folder`, or `package.module:NAME`.

    Raises:
        TargetError: it cannot be loaded, is not a `Runtime`, or has the name of a built-in one.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise TargetError(
            f"The runtime {reference!r} is neither built in nor a reference to your own.",
            f"Give {', '.join(map(str, built_in_runtimes()))}, file.py:NAME or package.module:NAME.",
        )
    is_file = place.endswith(".py")
    path = (folder / place).resolve()
    if is_file and not path.is_file():
        raise TargetError(
            f"The runtime's file {path} does not exist.", "Its path is relative to the file that names it."
        )
    with users_code(f"the runtime {reference} was imported", TargetError):
        module = module_in(path) if is_file else importlib.import_module(place)
    value = getattr(module, name, None)
    if not isinstance(value, Runtime):
        what = f"is a {type(value).__name__}" if hasattr(module, name) else "does not exist"
        raise TargetError(
            f"{reference} is not a runtime: {name} {what}.", "Make it a deadweight.Runtime at the top level."
        )
    runtime = replace(value, source=f"{path}:{name}" if is_file else reference)
    if runtime.name in {one.name for one in built_in_runtimes(variants=True)}:
        raise TargetError(
            f"The runtime {reference} has the name of a built-in one, {runtime.name}.", "Rename it."
        )
    _OWN[runtime.name] = runtime
    return runtime


def _loaded(source: str) -> Runtime:
    """A user's own runtime in another process than the user's, which loads it once."""
    return next((one for one in _OWN.values() if one.source == source), None) or own_runtime(source)
