"""Run a command as on a processor without AMX.

    python benchmarks/peers/without_amx.py python divprune_worker.py ENGINE_DIR 2

Linux hands the tile registers to a process that asks for them. A seccomp filter refuses that here,
so that libraries which check, as ONNX Runtime and oneDNN do, take their AVX-512 kernels.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_ARCH_PRCTL, _REQUEST_PERMISSION = 158, 0x1023  # of x86-64
_NUMBER, _FIRST_ARGUMENT = 0, 16  # bytes into seccomp_data
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_tiles() -> None:
    """From now on this process and what it starts get no tile registers.

    Raises:
        OSError: if the kernel takes no filter.
    """
    instructions = (  # code, steps to skip if equal, if not, operand
        (_LOAD_WORD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 3, _ARCH_PRCTL),
        (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, _REQUEST_PERMISSION),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    packed = b"".join(struct.pack("HBBI", *each) for each in instructions)
    program = _Program(len(instructions), packed)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, program)):
        passed = [ctypes.byref(a) if isinstance(a, _Program) else a for a in arguments]
        if libc.prctl(*passed):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


if __name__ == "__main__":
    refuse_tiles()
    os.execvp(sys.argv[1], sys.argv[1:])
