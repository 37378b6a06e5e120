"""Numbers of system calls, and AUDIT_ARCH_* of the processors that we know them of.

Source: asm/unistd_64.h of x86-64, asm-generic/unistd.h (aarch64), linux/audit.h.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

#: name, number on x86-64, number on aarch64; "-": there is no such call.
_TABLE = """
accept 43 202
accept4 288 242
access 21 -
arch_prctl 158 -
bind 49 200
brk 12 214
capget 125 90
capset 126 91
chmod 90 -
chown 92 -
clock_getres 229 114
clock_gettime 228 113
clock_nanosleep 230 115
clone 56 220
clone3 435 435
close 3 57
close_range 436 436
connect 42 203
dup 32 23
dup2 33 -
dup3 292 24
epoll_create1 291 20
epoll_ctl 233 21
epoll_pwait 281 22
epoll_pwait2 441 441
epoll_wait 232 -
eventfd2 290 19
execve 59 221
execveat 322 281
exit 60 93
exit_group 231 94
faccessat 269 48
faccessat2 439 439
fchmod 91 52
fchmodat 268 53
fchown 93 55
fchownat 260 54
fcntl 72 25
fstat 5 80
ftruncate 77 46
futex 202 98
get_robust_list 274 100
getcpu 309 168
getdents64 217 61
getegid 108 177
geteuid 107 175
getgid 104 176
getpeername 52 205
getpid 39 172
getrandom 318 278
getrusage 98 165
getsockname 51 204
getsockopt 55 209
gettid 186 178
gettimeofday 96 169
getuid 102 174
ioctl 16 29
kcmp 312 272
kill 62 129
landlock_add_rule 445 445
landlock_create_ruleset 444 444
landlock_restrict_self 446 446
lchown 94 -
listen 50 201
lseek 8 62
lstat 6 -
madvise 28 233
membarrier 324 283
mknod 133 -
mknodat 259 33
mmap 9 222
mount 165 40
mprotect 10 226
mremap 25 216
munmap 11 215
nanosleep 35 101
newfstatat 262 79
open 2 -
openat 257 56
openat2 437 437
pidfd_getfd 438 438
pidfd_open 434 434
pidfd_send_signal 424 424
pipe2 293 59
pivot_root 155 41
poll 7 -
ppoll 271 73
prctl 157 167
pread64 17 67
preadv2 327 286
prlimit64 302 261
process_vm_readv 310 270
process_vm_writev 311 271
pselect6 270 72
ptrace 101 117
pwrite64 18 68
pwritev2 328 287
read 0 63
readlink 89 -
readlinkat 267 78
readv 19 65
recvfrom 45 207
recvmsg 47 212
rename 82 -
renameat 264 38
renameat2 316 276
restart_syscall 219 128
rseq 334 293
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
rt_sigtimedwait 128 137
sched_getaffinity 204 123
sched_setaffinity 203 122
sched_setscheduler 144 119
sched_yield 24 124
seccomp 317 277
sendmsg 46 211
sendto 44 206
set_robust_list 273 99
set_tid_address 218 96
setns 308 268
setpriority 141 140
setsockopt 54 208
shutdown 48 210
sigaltstack 131 132
socket 41 198
socketpair 53 199
stat 4 -
statx 332 291
sysinfo 99 179
tgkill 234 131
umount2 166 39
uname 63 160
unlink 87 -
unlinkat 263 35
unshare 272 97
wait4 61 260
waitid 247 95
write 1 64
writev 20 66
"""
_ROWS = [line.split() for line in _TABLE.split("\n") if line]


@dataclass(frozen=True, slots=True)
class Calls:
    """The system calls of a processor.

    Attributes:
        audit: AUDIT_ARCH_*, which a filter compares.
        number: name -> number; what is not in it does not exist there.
    """

    audit: int
    number: Mapping[str, int]


def _calls(audit: int, column: int) -> Calls:
    return Calls(audit, {row[0]: int(row[column]) for row in _ROWS if row[column] != "-"})


#: By `platform.machine()`.
CALLS = {"x86_64": _calls(0xC000003E, 1), "aarch64": _calls(0xC00000B7, 2)}
#: All names, of any processor.
NAMES = frozenset(row[0] for row in _ROWS)


def native() -> Calls | None:
    """Those of this machine, or None for a processor that is not in the table."""
    return CALLS.get(platform.machine())
