"""Confine the current process by Landlock and seccomp, for clips that take a decoder over.

A confined process reads the installed libraries and its request's folder, and writes to that folder
alone. It makes no socket, starts no process but only threads, and signals and traces no other
process. Nothing here can be undone, and threads that start later inherit it.

    no_new_privs   a program that the process might start gets no further rights
    Landlock       which files it opens; TCP ports (kernel 6.7); signals (kernel 6.12)
    seccomp        the system calls below, and no others

The system calls are those that Python, FFmpeg and PyTorch make on Linux for x86-64 and aarch64.
"""

# Source: Linux's include/uapi/linux/{landlock,seccomp,filter,audit,prctl}.h and the tables of
# system calls of both processors.

import ctypes
import errno
import functools
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from foley.errors import ConfigError

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME, _PR_SET_DUMPABLE = 22, 38, 15, 4
_SECCOMP_MODE_FILTER = 2
# Landlock has one number of each call on all processors.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
# Write, read, list, remove folders and files, make folders and files, rename, truncate. Programs,
# devices, sockets, pipes and links cannot be made, and nothing is executed.
_READ_WRITE = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 13, 14))
# What each version of Landlock can restrict: access to files, TCP ports, and scopes.
_HANDLED_BY_VERSION = {
    1: ((1 << 13) - 1, 0, 0),
    2: ((1 << 14) - 1, 0, 0),
    3: ((1 << 15) - 1, 0, 0),
    4: ((1 << 15) - 1, 3, 0),
    5: ((1 << 16) - 1, 3, 0),
    6: ((1 << 16) - 1, 3, 3),
}
# What libraries read while they run: the number and kind of the processors, and random bytes.
_READABLE_FILES = (
    *("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/localtime", "/dev/urandom", "/dev/null"),
    *("/proc/cpuinfo", "/proc/self/statm", "/sys/devices/system/cpu"),
)

# fmt: off
# Allowed whatever their arguments are.
_CALLS = {
    "x86_64": dict(  # noqa: C408 - a name and its number
        read=0, write=1, open=2, close=3, stat=4, fstat=5, lstat=6, poll=7, lseek=8, mmap=9,
        mprotect=10, munmap=11, brk=12, rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15,
        pread64=17, pwrite64=18, readv=19, writev=20, access=21, pipe=22, select=23, sched_yield=24,
        mremap=25, msync=26, mincore=27, madvise=28, dup=32, dup2=33, pause=34, nanosleep=35,
        getpid=39, sendfile=40, exit=60, uname=63, flock=73, fsync=74, fdatasync=75, truncate=76,
        ftruncate=77, getdents=78, getcwd=79, rename=82, mkdir=83, rmdir=84, unlink=87, readlink=89,
        umask=95, gettimeofday=96, getrlimit=97, getrusage=98, sysinfo=99, times=100, getuid=102,
        getgid=104, geteuid=107, getegid=108, getppid=110, sigaltstack=131, statfs=137,
        fstatfs=138, sched_getparam=143, sched_getscheduler=145, sched_get_priority_max=146,
        sched_get_priority_min=147, gettid=186, time=201, futex=202, sched_getaffinity=204,
        getdents64=217, set_tid_address=218, restart_syscall=219, fadvise64=221, clock_gettime=228,
        clock_getres=229, clock_nanosleep=230, exit_group=231, openat=257, mkdirat=258,
        newfstatat=262, unlinkat=263, renameat=264, readlinkat=267, faccessat=269, pselect6=270,
        ppoll=271, set_robust_list=273, get_robust_list=274, fallocate=285, eventfd2=290, dup3=292,
        pipe2=293, preadv=295, pwritev=296, getcpu=309, renameat2=316, getrandom=318,
        membarrier=324, copy_file_range=326, preadv2=327, statx=332, rseq=334, faccessat2=439,
    ),
    "aarch64": dict(  # noqa: C408 - a name and its number
        getcwd=17, eventfd2=19, dup=23, dup3=24, flock=32, mkdirat=34, unlinkat=35, renameat=38,
        statfs=43, fstatfs=44, truncate=45, ftruncate=46, fallocate=47, faccessat=48, openat=56,
        close=57, pipe2=59, getdents64=61, lseek=62, read=63, write=64, readv=65, writev=66,
        pread64=67, pwrite64=68, preadv=69, pwritev=70, sendfile=71, pselect6=72, ppoll=73,
        readlinkat=78, newfstatat=79, fstat=80, fsync=82, fdatasync=83, exit=93, exit_group=94,
        set_tid_address=96, futex=98, set_robust_list=99, get_robust_list=100, nanosleep=101,
        clock_gettime=113, clock_getres=114, clock_nanosleep=115, sched_getscheduler=120,
        sched_getparam=121, sched_getaffinity=123, sched_yield=124, sched_get_priority_max=125,
        sched_get_priority_min=126, restart_syscall=128, sigaltstack=132, rt_sigaction=134,
        rt_sigprocmask=135, rt_sigreturn=139, times=153, uname=160, getrlimit=163, getrusage=165,
        umask=166, getcpu=168, gettimeofday=169, getpid=172, getppid=173, getuid=174, geteuid=175,
        getgid=176, getegid=177, gettid=178, sysinfo=179, brk=214, munmap=215, mremap=216,
        mmap=222, fadvise64=223, mprotect=226, msync=227, mincore=232, madvise=233, renameat2=276,
        getrandom=278, membarrier=283, copy_file_range=285, preadv2=286, statx=291, rseq=293,
        faccessat2=439,
    ),
}
# Allowed or answered by their arguments, in `_build_checks`.
_CHECKED_CALLS = {
    "x86_64": dict(  # noqa: C408 - a name and its number
        ioctl=16, clone=56, kill=62, fcntl=72, prctl=157, tgkill=234, prlimit64=302, clone3=435,
    ),
    "aarch64": dict(  # noqa: C408 - a name and its number
        fcntl=25, ioctl=29, kill=129, tgkill=131, prctl=167, clone=220, prlimit64=261, clone3=435,
    ),
}
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# fmt: on

_CLONE_THREAD = 0x10000
_F_SETLKW, _F_DUPFD_CLOEXEC = 7, 1030
_LOAD, _IS_EQUAL, _IS_GREATER, _IS_AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # an error number is added to `_FAIL`
_ARGUMENTS = 16  # their place in `struct seccomp_data`
_INSTRUCTION_BYTES = 8
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def find_missing_parts() -> list[str]:
    """Return the parts of the confinement that this machine lacks: Landlock, seccomp, or both."""
    missing = []
    if _landlock_version() < 1:
        missing.append("Landlock")
    if not _has_seccomp():
        missing.append("seccomp")
    return missing


def require_all_parts() -> None:
    """Check that this machine can confine processes completely.

    Raises:
        ConfigError: it lacks a part.
    """
    if missing := find_missing_parts():
        raise ConfigError(
            f"FOLEY_SANDBOX is required, and this machine lacks {' and '.join(missing)}; use a "
            "kernel with them and a container runtime that allows them, or set FOLEY_SANDBOX=auto"
        )


def list_readable_paths() -> list[str]:
    """Return the folders and files that a confined process may read besides its request's folder.

    They are the packages that this process has imported, Python's own library and the system's
    libraries. A folder on `sys.path` is not listed as such, since it may be a home folder.
    """
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = {os.path.realpath(sysconfig.get_path(name)) for name in names}
    for name, module in list(sys.modules.items()):
        if "." not in name:
            paths |= {os.path.realpath(path) for path in getattr(module, "__path__", ())}
    paths |= {os.path.realpath(path) if path[:5] != "/proc" else path for path in _READABLE_FILES}
    inside = {path for path in paths if any(str(up) in paths for up in Path(path).parents)}
    return sorted(path for path in paths - inside if os.path.exists(path))


class Confinement:
    """Confines processes by all parts that this machine has. It is made once, before the forks.

    Args:
        readable: existing folders and files that confined processes may read besides their
            request's folder, from `list_readable_paths`.
    """

    def __init__(self, readable: Iterable[str]) -> None:
        self._libc = _libc()
        self._landlock_version = _landlock_version()
        self._rights = {
            path: _READ_FILE | _READ_DIRECTORY if os.path.isdir(path) else _READ_FILE
            for path in readable
        }
        self._fixed_filter = b""
        if _has_seccomp():
            self._fixed_filter = _pack(_build_fixed_filter(platform.machine()))

    def confine(self, folder: Path) -> None:
        """Confine the current process, which must have one thread.

        Args:
            folder: the only one that the process may write to.

        Raises:
            OSError: a part that the machine has could not be set up.
        """
        if sys.platform != "linux":
            return
        self._check(self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        # No core file, and no debugger of this user.
        self._check(self._libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
        if self._landlock_version:
            self._restrict_files(folder)
        if self._fixed_filter:
            self._restrict_calls()

    def _restrict_files(self, folder: Path) -> None:
        version, call = self._landlock_version, self._libc.syscall
        handled = _HANDLED_BY_VERSION[min(version, max(_HANDLED_BY_VERSION))]
        # Older kernels refuse the fields that they do not know, unless they are left out.
        attributes = struct.pack("<QQQ", *handled)[
            : 8 if version < 4 else 16 if version < 6 else 24
        ]
        ruleset = call(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
        self._check(ruleset, "landlock_create_ruleset")
        for path, access in (*self._rights.items(), (str(folder), _READ_WRITE & handled[0])):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("<Qi", access, descriptor)
            self._check(call(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), "landlock_add_rule")
            os.close(descriptor)
        self._check(call(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
        os.close(ruleset)

    def _restrict_calls(self) -> None:
        checks = _build_checks(platform.machine(), os.getpid())
        code = self._fixed_filter + _pack(checks)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = _Program(len(code) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
        done = self._libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
        self._check(done, "seccomp")

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def _build_fixed_filter(machine: str) -> list[_Instruction]:
    """Return the instructions that check the processor's interface and allow `_CALLS`.

    Args:
        machine: x86_64 or aarch64.
    """
    program = [
        _load(4),
        (_IS_EQUAL, 1, 0, _AUDIT_ARCHITECTURE[machine]),
        _answer(_KILL),
        _load(0),
    ]
    if machine == "x86_64":  # the x32 interface has other numbers
        program += [(_IS_AT_LEAST, 0, 1, 0x40000000), _answer(_KILL)]
    for number in _CALLS[machine].values():
        program += [(_IS_EQUAL, 0, 1, number), _answer(_ALLOW)]
    return program


def _build_checks(machine: str, pid: int) -> list[_Instruction]:
    """Return the instructions after the fixed ones: they decide on `_CHECKED_CALLS`.

    Args:
        machine: x86_64 or aarch64.
        pid: of the process, the only one that it may signal.
    """
    allow, refuse = _answer(_ALLOW), _answer(_FAIL | errno.EPERM)
    is_own_pid = [_load_argument(0), (_IS_EQUAL, 0, 1, pid), allow, refuse]
    checks: dict[str, list[_Instruction]] = {
        # The C library then calls `clone`, whose flags can be read here.
        "clone3": [_answer(_FAIL | errno.ENOSYS)],
        "clone": [_load_argument(0), (_HAS_BITS, 0, 1, _CLONE_THREAD), allow, refuse],
        "kill": is_own_pid,
        "tgkill": is_own_pid,
        # Python asks whether a file is a terminal.
        "ioctl": [_answer(_FAIL | errno.ENOTTY)],
        # Flags, locks and copies of descriptors, but no signals by `F_SETOWN`.
        "fcntl": [
            _load_argument(1),
            (_IS_EQUAL, 1, 0, _F_DUPFD_CLOEXEC),
            (_IS_GREATER, 1, 0, _F_SETLKW),
            allow,
            refuse,
        ],
        "prctl": [_load_argument(0), (_IS_EQUAL, 0, 1, _PR_SET_NAME), allow, refuse],
        # Reading of limits: the pointer to a new one is null in both halves.
        "prlimit64": [
            _load_argument(2),
            (_IS_EQUAL, 0, 3, 0),
            _load(_ARGUMENTS + 8 * 2 + 4),
            (_IS_EQUAL, 0, 1, 0),
            allow,
            refuse,
        ],
    }
    program: list[_Instruction] = []
    for name, number in _CHECKED_CALLS[machine].items():
        program += [(_IS_EQUAL, 0, len(checks[name]), number), *checks[name]]
    return [*program, refuse]


def _load(offset: int) -> _Instruction:
    """Return the instruction that loads 32 bits of `struct seccomp_data`."""
    return (_LOAD, 0, 0, offset)


def _load_argument(index: int) -> _Instruction:
    """Return the instruction that loads the low half of an argument, which comes first."""
    return _load(_ARGUMENTS + 8 * index)


def _answer(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _pack(instructions: list[_Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def _landlock_version() -> int:
    """Return the version of Landlock in this kernel, 0 if there is none or it is switched off."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)))


def _has_seccomp() -> bool:
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return False
    # The kernel fails to read the filter at address 0, if it reads filters at all.
    failed = _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return bool(failed) and ctypes.get_errno() == errno.EFAULT


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
