"""A program that one test compiled serves the others of the process.

Tests train the same tiny networks again and again, and compiling them is half of their time. The
compilation cache of JAX would have to write programs to disk, and XLA cannot serialise those that
call oneDNN; so the compiler's function is wrapped. A program is the same if its text, the options
and the devices are. Tests that start a process of their own compile anew.
"""

import hashlib

from jax._src import compiler


def install() -> bool:
    """Returns whether this version of JAX has the function; without it, tests take longer."""
    original = getattr(compiler, "backend_compile_and_load", None)
    if original is None:
        return False
    programs = {}

    def compile_and_load(backend, module, devices, options, callbacks):
        if callbacks or backend.platform != "cpu":
            return original(backend, module, devices, options, callbacks)
        text = module.operation.get_asm(enable_debug_info=False)
        digest = hashlib.sha256(text.encode()).digest()
        key = digest, options.SerializeAsString(), tuple(devices)
        if key not in programs:
            programs[key] = original(backend, module, devices, options, callbacks)
        return programs[key]

    compiler.backend_compile_and_load = compile_and_load
    return True
