"""Put `compat` in the place of `socketserver`, for everything that is imported afterwards."""

import socketserver
import sys
from types import ModuleType


def install() -> None:
    """Make `import socketserver` mean `compat`, also in modules that are imported later.

    Such as http.server, xmlrpc.server, wsgiref, logging.config. Calling it again does nothing.

    Example::

        import compat

        compat.install()

        from http.server import ThreadingHTTPServer  # now on compat's ThreadingMixIn

    Raises:
        RuntimeError: modules that were imported before hold the standard library's
            classes, and would keep them.
    """
    compat = sys.modules["compat"]
    if sys.modules.get("socketserver") is compat:
        return
    holders = sorted(name for name, module in list(sys.modules.items()) if _holds_original(name, module))
    if holders:
        raise RuntimeError(
            f"compat.install() comes too late: {', '.join(holders)} already hold the standard library's"
            " socketserver. Call it before they are imported (in the first lines of the program), or start"
            " the unchanged program with `python -m compat script.py`"
        )
    _import_all()
    sys.modules["socketserver"] = compat


def _import_all() -> None:
    """Import what this package has left for later under `-X lazy_imports=all` (PEP 810).

    What builds on the standard library's `socketserver` has to import that before it is swapped.
    """
    seen: set[str] = set()
    while ours := {name for name in sys.modules if name.partition(".")[0] == "compat"} - seen:
        seen |= ours
        for module in map(sys.modules.__getitem__, ours):
            for name in list(vars(module)):
                getattr(module, name)


def _holds_original(name: str, module: ModuleType | None) -> bool:
    if name == "socketserver" or name.partition(".")[0] == "compat":
        return False
    values = list(vars(module).values()) if isinstance(module, ModuleType) else []
    return any(value is socketserver or _is_original(value) for value in values)


def _is_original(value: object) -> bool:
    """Whether it is a server class of the stdlib's, or derives from one and not from ours."""
    if not isinstance(value, type):
        return False
    families = {
        # __module__ is None, or a property, in some classes that other code generates.
        str(base.__module__).partition(".")[0]
        for base in value.__mro__
        if base.__name__.endswith(("Server", "MixIn"))
    }
    return "socketserver" in families and "compat" not in families
