"""Run a Python program as on a CPU that has AVX2 and nothing newer: `python -m tools.avx2_only PROGRAM ARGUMENTS`.

    python -m tools.avx2_only tools/compare_engines.py --preset bfcn50 --bits 1-2 --size 256x160 --threads 1

Every library of the process asks the CPU what it has by the instruction CPUID. Linux can let it fault on Intel's CPUs
(arch_prctl), and a handler of the fault then answers without AVX-512, VNNI, AMX and what came with them. On other CPUs
the program imports copies of the libraries of `PACKAGES`, which have in place of CPUID an instruction that always
faults. So the engines take the ways that they take on an older CPU; that the rest of this one is faster than an older
one remains.

Source: Intel, Software Developer's Manual, volume 2A, CPUID and INT n; for the layout of a signal's context, Linux's
and glibc's ``sys/ucontext.h`` of x86-64.
"""

import ctypes
import os
import platform
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
from llvmlite import binding, ir

from bitseg.files import write_safely

PACKAGES = ("llvmlite", "numpy", "numpy.libs", "onnx", "onnxruntime", "openvino")
"""Folders of installed packages that choose their ways by what the CPU has."""

_ARCH_PRCTL, _ARCH_GET_CPUID, _ARCH_SET_CPUID = 158, 0x1011, 0x1012

_HIDDEN = {
    (7, 0): {
        "ebx": (16, 17, 21, 26, 27, 28, 30, 31),
        "ecx": (1, 6, 8, 9, 10, 11, 12, 14),
        "edx": (2, 3, 8, *range(22, 26)),
    },
    (7, 1): {"eax": (4, 5, 21, 23), "edx": (4, 5, 8, 10, 19)},
    **{
        (leaf, subleaf): dict.fromkeys(("eax", "ebx", "ecx", "edx"), range(32))
        for leaf in (29, 30, 36)
        for subleaf in (0, 1)
    },
}
"""Bits that are answered as 0, of a leaf and subleaf of CPUID: those of AVX-512, AVX-VNNI, GFNI, AMX, AVX10."""

_CPUID, _INTERRUPT = b"\x0f\xa2", b"\xcd\xa2"
"""Two instructions of two bytes: what is replaced, and a software interrupt, which no program may raise."""

_REGISTERS = {"eax": 144, "ebx": 128, "ecx": 152, "edx": 136}
_INSTRUCTION = 168
"""Where in a signal's context registers are, and the address of the instruction that faulted."""

_kept = []
"""The handler's machine code, for as long as the process lives."""


def is_on():
    """Whether this process is one that `hide` has been called in."""
    return _is_linux_on_x86_64() and (_syscall(_ARCH_GET_CPUID, 0) == 0 or _has_copies())


def hide():
    """Let CPUID answer without what is newer than AVX2, to this thread and those it starts.

    Raises
    ------
    OSError
        The CPU cannot, and llvmlite is none of the `copy_packages`.
    """
    library = ctypes.CDLL(None)
    # Struct sigaction: the handler, 128 bytes of a mask, flags and a restorer.
    action = (ctypes.c_uint64 * 19)(_compiled_handler(ctypes.cast(library.signal, ctypes.c_void_p).value))
    information, not_blocked = 4, 0x40000000
    action[17] = information | not_blocked
    if library.sigaction(signal.SIGSEGV, action, None) or not (_has_copies() or _syscall(_ARCH_SET_CPUID, 0) == 0):
        raise OSError("this CPU does not let CPUID fault")


def _is_linux_on_x86_64():
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _can_fault():
    """Whether this CPU can let CPUID fault: Intel's can, from 2012 on, unless a hypervisor keeps it."""
    return _syscall(_ARCH_SET_CPUID, 0) == 0 and _syscall(_ARCH_SET_CPUID, 1) == 0


def _has_copies():
    return Path(binding.__file__).is_relative_to(_copies())


def _copies():
    return Path(sys.prefix) / "avx2-only"


def copy_packages():
    """Copy what is installed of `PACKAGES`, with CPUID replaced. What is there already and newer stays.

    Returns
    -------
    Path
        A folder in this Python's environment, for the beginning of ``PYTHONPATH``.

    Raises
    ------
    OSError
        The folder cannot be written, or there is no objdump (GNU binutils), which tells instructions from data.
    """
    if shutil.which("objdump") is None:
        raise OSError("this CPU does not let CPUID fault, and copies of libraries without it need objdump (binutils)")
    installed = Path(sysconfig.get_path("platlib"))
    if not _copies().exists():
        click.echo("copying libraries without CPUID once; this takes a minute", err=True)
    for package in PACKAGES:
        for source in (installed / package).rglob("*"):
            copy = _copies() / source.relative_to(installed)
            if source.is_dir() or (copy.exists() and copy.stat().st_mtime >= source.stat().st_mtime):
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            if ".so" in source.name and _CPUID in source.read_bytes():
                with write_safely(copy, OSError) as file:
                    file.write(without_cpuid(source))
            else:
                copy.symlink_to(source)
    return _copies()


def without_cpuid(path):
    """Content of a library, an ELF file, with every CPUID replaced by another instruction of two bytes, see `hide`."""
    content = bytearray(path.read_bytes())
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.rstrip().endswith(b"\tcpuid"):
                offset = _offset(content, int(line.split(b":")[0], 16))
                content[offset : offset + 2] = _INTERRUPT
    if process.returncode:
        raise OSError(f"objdump does not read {path}")
    return content


def _offset(content, address):
    """Where in an ELF file that is which has this address in memory."""
    (first,), (size, number), loaded = struct.unpack_from("<Q", content, 32), struct.unpack_from("<HH", content, 54), 1
    for header in range(first, first + size * number, size):
        kind, _, offset, start, _, length = struct.unpack_from("<2I4Q", content, header)
        if kind == loaded and start <= address < start + length:
            return address - start + offset
    raise OSError(f"no part of the file has the address {address:#x}")


def _syscall(function, value):
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, function, ctypes.c_ulong(value))


def _compiled_handler(signal_function):
    """Address of ``void handler(int, siginfo_t *, ucontext_t *)``."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    module = binding.parse_assembly(str(_handler(signal_function)))
    # No features are asked for: that would be CPUID's answer.
    machine = binding.Target.from_default_triple().create_target_machine(cpu="x86-64", jit=True, codemodel="jitdefault")
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _kept.append(engine)
    return engine.get_function_address("handler")


def _handler(signal_function):
    """LLVM module of the handler. ``signal(SIGSEGV, SIG_DFL)`` lets the fault of another instruction end as usual."""
    byte, int32, int64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [int32, byte.as_pointer(), byte.as_pointer()])
    function = ir.Function(module, kind, "handler")
    builder = ir.IRBuilder(function.append_basic_block())

    def place(offset, element):
        return builder.bitcast(builder.gep(function.args[2], [int64(offset)]), element.as_pointer())

    def let_cpuid(work):
        kind = ir.FunctionType(int64, [int64] * 3)
        constraints = "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"
        builder.asm(kind, "syscall", constraints, [int64(n) for n in (_ARCH_PRCTL, _ARCH_SET_CPUID, work)], True)

    address = builder.load(place(_INSTRUCTION, int64))
    instruction = builder.load(builder.inttoptr(address, ir.IntType(16).as_pointer()))
    numbers = (ir.IntType(16)(int.from_bytes(one, "little")) for one in (_CPUID, _INTERRUPT))
    known = (builder.icmp_unsigned("==", instruction, number) for number in numbers)
    with builder.if_else(builder.or_(*known)) as (cpuid, other):
        with cpuid:
            leaf, subleaf = (builder.load(place(_REGISTERS[name], int32)) for name in ("eax", "ecx"))
            let_cpuid(1)
            four = ir.LiteralStructType([int32] * 4)
            constraints = "={eax},={ebx},={ecx},={edx},{eax},{ecx}"
            answer = builder.asm(ir.FunctionType(four, [int32] * 2), "cpuid", constraints, [leaf, subleaf], True)
            let_cpuid(0)
            for number, (name, offset) in enumerate(_REGISTERS.items()):
                value = builder.extract_value(answer, number)
                for (hidden_leaf, hidden_subleaf), bits in _HIDDEN.items():
                    here = builder.and_(
                        builder.icmp_unsigned("==", leaf, int32(hidden_leaf)),
                        builder.icmp_unsigned("==", subleaf, int32(hidden_subleaf)),
                    )
                    mask = int32(~sum(1 << bit for bit in bits.get(name, ())) & 0xFFFFFFFF)
                    value = builder.select(here, builder.and_(value, mask), value)
                builder.store(builder.zext(value, int64), place(offset, int64))
            builder.store(builder.add(address, int64(2)), place(_INSTRUCTION, int64))
        with other:
            kind = ir.FunctionType(byte.as_pointer(), [int32, byte.as_pointer()]).as_pointer()
            default = ir.Constant(byte.as_pointer(), None)
            builder.call(builder.inttoptr(int64(signal_function), kind), [int32(signal.SIGSEGV), default])
    builder.ret_void()
    return module


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("program", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(program, arguments):
    """Run a Python program as on a CPU with AVX2 and nothing newer."""
    if not _is_linux_on_x86_64():
        raise click.ClickException("CPUID can be made to fault on x86-64 under Linux only")
    try:
        if not _can_fault() and not _has_copies():
            _start_with_copies(program, arguments)
        hide()
    except OSError as error:
        raise click.ClickException(str(error)) from None
    if _has_copies():
        # Not for processes that the program starts: they are to call `hide` first.
        os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def _start_with_copies(program, arguments):
    """Be this program again, with the copies of packages in place of what is installed."""
    folders = os.pathsep.join((str(copy_packages()), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "tools.avx2_only", program, *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": folders})


if __name__ == "__main__":
    main(prog_name="python -m tools.avx2_only")
