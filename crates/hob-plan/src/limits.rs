//! Memory limits under the machine's own size: control groups (v2 and v1) and `ulimit`. Owns their reading; it must
//! not decide what to do about them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::SysRoot;

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitSource {
    CgroupV2(String),
    CgroupV1(String),
    /// `ulimit -v`
    AddressSpace,
    /// `ulimit -d`
    DataSize,
}

impl fmt::Display for LimitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupV2(path) => write!(f, "cgroup v2 memory limit of {path}"),
            Self::CgroupV1(path) => write!(f, "cgroup v1 memory limit of {path}"),
            Self::AddressSpace => write!(f, "address space limit (ulimit -v)"),
            Self::DataSize => write!(f, "data size limit (ulimit -d)"),
        }
    }
}

/// One limit and what is already used of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimit {
    pub source: LimitSource,
    pub bytes: u64,
    /// Used and not reclaimable (inactive page cache is not counted).
    pub used_bytes: u64,
}

impl MemoryLimit {
    pub fn room_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.used_bytes)
    }
}

/// v1 writes "no limit" as the largest page-aligned i64; anything near it is none.
const UNLIMITED: u64 = 1 << 60;

/// Every limit that binds this process, in no particular order.
pub fn read(root: &SysRoot) -> Vec<MemoryLimit> {
    let mut out = Vec::new();
    let groups = root.read("proc/self/cgroup").unwrap_or_default();
    let mounts = root.read("proc/self/mountinfo").unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.is_empty() {
            out.extend(walk(root, &mounts, path, &V2));
        } else if controllers.split(',').any(|c| c == "memory") {
            out.extend(walk(root, &mounts, path, &V1));
        }
    }
    out.extend(ulimits(root));
    out
}

/// The file names of one generation of control groups.
struct Generation {
    v2: bool,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const V2: Generation =
    Generation { v2: true, limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };
const V1: Generation = Generation {
    v2: false,
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// The tightest limit on the way from the process's group up to the mount. Each ancestor's limit binds too.
fn walk(root: &SysRoot, mounts: &str, path: &str, kind: &Generation) -> Option<MemoryLimit> {
    let (mount_root, mount) = mounts.lines().find_map(|l| mount_of(l, kind.v2))?;
    // In a container the group's path is often written from the host's root while the mount starts below it.
    let inside = path.strip_prefix(mount_root).filter(|_| mount_root != "/").unwrap_or(path);
    let mut tightest: Option<MemoryLimit> = None;
    let mut at = inside.trim_matches('/');
    loop {
        let dir = if at.is_empty() { mount.to_string() } else { format!("{mount}/{at}") };
        if let Some(limit) = group_limit(root, &dir, kind)
            && tightest.as_ref().is_none_or(|t| limit.room_bytes() < t.room_bytes())
        {
            tightest = Some(limit);
        }
        if at.is_empty() {
            return tightest;
        }
        at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
}

/// Root and mount point of a `mountinfo` line if it is the memory controller's.
/// Format: proc(5), `id parent dev root mount options... - fstype source super-options`.
fn mount_of(line: &str, v2: bool) -> Option<(&str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let (mount_root, mount) = (left.nth(3)?, left.next()?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
    let ours =
        if v2 { kind == "cgroup2" } else { kind == "cgroup" && options.split(',').any(|o| o == "memory") };
    ours.then_some((mount_root, mount))
}

fn group_limit(root: &SysRoot, dir: &str, kind: &Generation) -> Option<MemoryLimit> {
    let bytes = root.number(&format!("{dir}/{}", kind.limit)).filter(|&b| b < UNLIMITED)?;
    let usage = root.number(&format!("{dir}/{}", kind.usage)).unwrap_or(0);
    let stat = root.read(&format!("{dir}/memory.stat")).unwrap_or_default();
    let reclaimable = stat
        .lines()
        .filter_map(|l| l.split_once(' '))
        .find(|(k, _)| *k == kind.reclaimable)
        .and_then(|(_, v)| v.trim().parse::<u64>().ok())
        .unwrap_or(0);
    let source =
        if kind.v2 { LimitSource::CgroupV2(dir.to_string()) } else { LimitSource::CgroupV1(dir.to_string()) };
    Some(MemoryLimit { source, bytes, used_bytes: usage.saturating_sub(reclaimable) })
}

/// Soft limits of `/proc/self/limits` with what `/proc/self/status` says is used.
fn ulimits(root: &SysRoot) -> Vec<MemoryLimit> {
    let limits = root.read("proc/self/limits").unwrap_or_default();
    let status = root.read("proc/self/status").unwrap_or_default();
    let used = |key: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(key))
            .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    [
        ("Max address space", LimitSource::AddressSpace, "VmSize:"),
        ("Max data size", LimitSource::DataSize, "VmData:"),
    ]
    .into_iter()
    .filter_map(|(name, source, key)| {
        let line = limits.lines().find_map(|l| l.strip_prefix(name))?;
        let bytes = line.split_whitespace().next()?.parse::<u64>().ok()?;
        Some(MemoryLimit { source, bytes, used_bytes: used(key) })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    const MOUNT_V1: &str = "40 39 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                            41 39 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    fn limits_of(name: &str, files: &[(&str, &str)]) -> Vec<MemoryLimit> {
        let dir = fake_root(name, files);
        read(&SysRoot::new(dir.path()))
    }

    #[test]
    fn a_parent_groups_limit_binds() {
        let limits = limits_of(
            "limits-parent",
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/memory.max", "4096\n"),
                ("sys/fs/cgroup/a/memory.current", "96\n"),
            ],
        );
        assert_eq!(limits.len(), 1);
        assert_eq!((limits[0].bytes, limits[0].room_bytes()), (4096, 4000));
        assert_eq!(limits[0].source, LimitSource::CgroupV2("/sys/fs/cgroup/a".into()));
    }

    #[test]
    fn v1_unlimited_is_no_limit() {
        let limits = limits_of(
            "limits-v1-none",
            &[
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/x\n0::/\n"),
                ("proc/self/mountinfo", MOUNT_V1),
                ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        assert_eq!(limits, []);
    }

    #[test]
    fn v1_counts_inactive_file_pages_as_free() {
        let limits = limits_of(
            "limits-v1",
            &[
                ("proc/self/cgroup", "4:memory:/x\n"),
                ("proc/self/mountinfo", MOUNT_V1),
                ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n"),
                ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "700\n"),
                ("sys/fs/cgroup/memory/x/memory.stat", "cache 9\ntotal_inactive_file 300\n"),
            ],
        );
        assert_eq!((limits[0].bytes, limits[0].used_bytes), (1000, 400));
    }

    #[test]
    fn a_container_sees_its_group_at_the_mount() {
        // The path is the host's; the mount's root is that very group.
        let limits = limits_of(
            "limits-container",
            &[
                ("proc/self/cgroup", "4:memory:/docker/abc\n"),
                (
                    "proc/self/mountinfo",
                    "40 39 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                ),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2048\n"),
            ],
        );
        assert_eq!(limits[0].bytes, 2048);
    }

    #[test]
    fn ulimit_counts_what_is_used() {
        let limits = limits_of(
            "limits-ulimit",
            &[
                (
                    "proc/self/limits",
                    "Limit Soft Hard Units\nMax data size             unlimited unlimited bytes\n\
                     Max address space         1048576    unlimited            bytes\n",
                ),
                ("proc/self/status", "VmSize:\t    24 kB\nVmData:\t 1 kB\n"),
            ],
        );
        assert_eq!(limits.len(), 1);
        assert_eq!(limits[0].source, LimitSource::AddressSpace);
        assert_eq!(limits[0].room_bytes(), (1 << 20) - (24 << 10));
    }

    #[test]
    fn nonsense_is_no_limit() {
        let limits = limits_of(
            "limits-nonsense",
            &[
                ("proc/self/cgroup", "::\n0\nmemory\n0::\n0::../../..\n"),
                ("proc/self/mountinfo", "x - y\n - \n30 1 0:26 / /m rw - cgroup2\n"),
                ("proc/self/limits", "Max address space\nMax data size x y\n"),
            ],
        );
        assert_eq!(limits, []);
    }
}
