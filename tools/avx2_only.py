"""Run a Python program as on a CPU that has AVX2 and nothing newer: `python -m tools.avx2_only PROGRAM ARGUMENTS`.

    python -m tools.avx2_only tools/compare_engines.py --preset bfcn50 --bits 1-2 --size 256x160 --threads 1

Every library of the process asks the CPU what it has by the instruction CPUID. Linux can let it fault on Intel's CPUs
(arch_prctl), and a handler of the fault then answers without AVX-512, VNNI, AMX and what came with them. So the engines
take the ways that they take on an older CPU; that the rest of this one is faster than an older one remains.

Source: Intel, Software Developer's Manual, volume 2A, CPUID; for the layout of a signal's context, Linux's and glibc's
``sys/ucontext.h`` of x86-64.
"""

import ctypes
import platform
import runpy
import signal
import sys

import click
from llvmlite import binding, ir

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

_REGISTERS = {"eax": 144, "ebx": 128, "ecx": 152, "edx": 136}
_INSTRUCTION = 168
"""Where in a signal's context registers are, and the address of the instruction that faulted."""

_kept = []
"""The handler's machine code, for as long as the process lives."""


def is_on():
    """Whether this process is one that `hide` has been called in."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and _syscall(_ARCH_GET_CPUID, 0) == 0


def hide():
    """Let CPUID answer without what is newer than AVX2, to this thread and those it starts.

    Raises
    ------
    OSError
        The system or the CPU cannot.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise OSError("CPUID can be made to fault on x86-64 under Linux only")
    library = ctypes.CDLL(None)
    # Struct sigaction: the handler, 128 bytes of a mask, flags and a restorer.
    action = (ctypes.c_uint64 * 19)(_compiled_handler(ctypes.cast(library.signal, ctypes.c_void_p).value))
    information, not_blocked = 4, 0x40000000
    action[17] = information | not_blocked
    if library.sigaction(signal.SIGSEGV, action, None) or _syscall(_ARCH_SET_CPUID, 0):
        raise OSError("this CPU does not let CPUID fault: Intel's do, from 2012 on, unless a hypervisor keeps it")


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
    with builder.if_else(builder.icmp_unsigned("==", instruction, ir.IntType(16)(0xA20F))) as (cpuid, other):
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
    try:
        hide()
    except OSError as error:
        raise click.ClickException(str(error)) from None
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(prog_name="python -m tools.avx2_only")
