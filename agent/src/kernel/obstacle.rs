//! Why the kernel refused: reads what this thread may do, and says what stands in the way and what to do about it.
//!
//! Asked only after something was refused. The version or the capabilities alone prove nothing (distributions backport,
//! security modules forbid), so trying comes first and this explains the answer.

use std::{fmt, fs, io};

use nix::errno::Errno;

/// The first kernel with `sk_lookup`.
const FIRST_KERNEL: Release = Release { major: 5, minor: 9 };
/// From here on BPF memory is charged to the cgroup and no longer limited by `RLIMIT_MEMLOCK`.
pub(super) const FIRST_KERNEL_WITHOUT_MEMLOCK: Release = Release { major: 5, minor: 11 };

/// A capability that Sluice may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// `CAP_BPF`: to make maps and load programs.
    Bpf,
    /// `CAP_NET_ADMIN`: to load and attach a network program.
    NetAdmin,
    /// `CAP_PERFMON`: only for the kernel log, whose code handles pointers in ways the verifier forbids without it.
    Perfmon,
}

/// What stands in the way; its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Capabilities that this process lacks.
    Capabilities(Vec<Capability>),
    /// The process is in a user namespace; BPF is judged by the initial one.
    UserNamespace,
    /// A seccomp filter refuses `bpf(2)` although the capabilities are there.
    Seccomp,
    /// The kernel has no `sk_lookup`.
    KernelTooOld {
        /// As `uname -r` says it.
        release: String,
    },
    /// The kernel is new enough but was built without something.
    NotConfigured {
        /// As `uname -r` says it.
        release: String,
    },
    /// `RLIMIT_MEMLOCK` is too low on a kernel that charges BPF memory to it.
    LockedMemory,
    /// Out of memory, most likely by the limit of the container.
    Memory,
    /// Refused without a reason that can be seen from here.
    SecurityModule,
    /// Anything else.
    Unknown,
}

/// What the calling thread may do and what it runs on.
#[derive(Clone, Debug)]
pub(super) struct Circumstances {
    effective: u64,
    seccomp: bool,
    initial_user_namespace: bool,
    release: String,
}

/// Version of a kernel, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release {
    major: u32,
    minor: u32,
}

// === impl Capability ===

impl Capability {
    const fn bit(self) -> u64 {
        match self {
            Self::NetAdmin => 1 << 12,
            Self::Perfmon => 1 << 38,
            Self::Bpf => 1 << 39,
        }
    }

    /// `CAP_SYS_ADMIN` stands for the other two, which were split from it in Linux 5.8.
    const fn is_implied_by_sys_admin(self) -> bool {
        !matches!(self, Self::NetAdmin)
    }

    /// The name as a pod's `securityContext.capabilities.add` writes it.
    const fn short_name(self) -> &'static str {
        match self {
            Self::Bpf => "BPF",
            Self::NetAdmin => "NET_ADMIN",
            Self::Perfmon => "PERFMON",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.short_name())
    }
}

// === impl Obstacle ===

impl Obstacle {
    /// Explains `error` for an operation that needs `needed`.
    pub(super) fn explain(error: &io::Error, needed: &[Capability], circumstances: &Circumstances) -> Self {
        let Some(errno) = error.raw_os_error().map(Errno::from_raw) else { return Self::Unknown };
        let release = || circumstances.release.clone();
        let is_older = |than| Release::parse(&circumstances.release).is_some_and(|release| release < than);
        match errno {
            Errno::EPERM | Errno::EACCES => {
                let missing = circumstances.missing(needed);
                if !circumstances.initial_user_namespace {
                    Self::UserNamespace
                } else if is_older(FIRST_KERNEL) {
                    Self::KernelTooOld { release: release() }
                } else if !missing.is_empty() {
                    Self::Capabilities(missing)
                } else if circumstances.seccomp {
                    Self::Seccomp
                } else if is_older(FIRST_KERNEL_WITHOUT_MEMLOCK) {
                    Self::LockedMemory
                } else {
                    Self::SecurityModule
                }
            }
            Errno::ENOSYS if circumstances.seccomp => Self::Seccomp,
            Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP if is_older(FIRST_KERNEL) => {
                Self::KernelTooOld { release: release() }
            }
            Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP => Self::NotConfigured { release: release() },
            Errno::ENOMEM => Self::Memory,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities(missing) => {
                let names = |separator, name: fn(&Capability) -> String| {
                    missing.iter().map(name).collect::<Vec<_>>().join(separator)
                };
                write!(
                    f,
                    "this process lacks {}; run it as root, or give its container \
                     securityContext.capabilities.add: [{}] (and runAsUser: 0, or a binary with file capabilities)",
                    names(" and ", Capability::to_string),
                    names(", ", |capability| capability.short_name().to_owned()),
                )
            }
            Self::UserNamespace => f.write_str(
                "this process is in a user namespace, where no capability allows BPF; for a pod leave out \
                 hostUsers: false, for a container use no user-namespace remapping and no rootless engine",
            ),
            Self::Seccomp => f.write_str(
                "a seccomp filter forbids the system call bpf(2) although the capabilities are there; give the \
                 container securityContext.seccompProfile: {type: Unconfined}, or a profile that allows bpf (the \
                 default profiles of containerd from 1.6.8 and of Docker from 23.0 do, with CAP_BPF)",
            ),
            Self::KernelTooOld { release } => write!(
                f,
                "kernel {release} is too old; Sluice needs Linux 5.9 or newer (5.10 is the oldest long-term one)"
            ),
            Self::NotConfigured { release } => write!(
                f,
                "kernel {release} was built without something that Sluice needs; it must have CONFIG_BPF_SYSCALL, \
                 CONFIG_INET and CONFIG_NET_SOCK_MSG (CONFIG_BPF_STREAM_PARSER before 5.10)",
            ),
            Self::LockedMemory => f.write_str(
                "the limit for locked memory is too low for BPF on a kernel before 5.11; raise it with \
                 ulimit -l unlimited, or give the container CAP_SYS_RESOURCE so that it can do so itself",
            ),
            Self::Memory => {
                f.write_str("no memory left for the kernel's maps; raise the memory limit of the container")
            }
            Self::SecurityModule => f.write_str(
                "the capabilities are there and no seccomp filter is set, so a security module or kernel lockdown \
                 forbids it; look for a denial in the kernel's audit log (on SELinux the container needs a type that \
                 may use bpf, such as seLinuxOptions: {type: spc_t})",
            ),
            Self::Unknown => f.write_str("the kernel refused for a reason that Sluice does not know"),
        }
    }
}

// === impl Circumstances ===

impl Circumstances {
    /// Of the calling thread. What cannot be read is taken to be as usual: it must not hide the error being explained.
    pub(super) fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(
            &read("/proc/thread-self/status"),
            &read("/proc/thread-self/uid_map"),
            &read("/proc/sys/kernel/osrelease"),
        )
    }

    fn parse(status: &str, uid_map: &str, release: &str) -> Self {
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Self {
            effective: field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(u64::MAX),
            // 2 is "filter"; 1, the strict mode, would not have got this far.
            seccomp: field("Seccomp:") == Some("2"),
            initial_user_namespace: uid_map.is_empty() || uid_map.split_whitespace().eq(["0", "0", "4294967295"]),
            release: release.trim().to_owned(),
        }
    }

    /// Whether the kernel is known to be older.
    pub(super) fn is_older_than(&self, release: Release) -> bool {
        Release::parse(&self.release).is_some_and(|own| own < release)
    }

    fn missing(&self, needed: &[Capability]) -> Vec<Capability> {
        const SYS_ADMIN: u64 = 1 << 21;
        let has = |capability: Capability| {
            self.effective & capability.bit() != 0
                || (capability.is_implied_by_sys_admin() && self.effective & SYS_ADMIN != 0)
        };
        needed.iter().copied().filter(|&capability| !has(capability)).collect()
    }
}

// === impl Release ===

impl Release {
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests;
