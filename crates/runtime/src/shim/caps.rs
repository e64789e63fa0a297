//! Capability sets of the calling thread (capabilities(7)), by system call: `capset` and `prctl`.
//!
//! Sets are masks with one bit per capability number. A set asks for no more than the shim has: inside a container or
//! a restricted service, "all" means all there are.

use std::io;

use libcontainer::oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// Layout of version 3 of `capset`'s arguments: header, then two words (low, high) of three sets each.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;
/// CAP_SYS_RESOURCE, without which limits and scores go one way only.
pub const SYS_RESOURCE: u32 = 24;

const AMBIENT_RAISE: libc::c_ulong = 2;
const AMBIENT_CLEAR: libc::c_ulong = 4;

/// Number of a capability, `include/uapi/linux/capability.h`.
fn number(capability: Capability) -> u32 {
    use Capability as Cap;
    match capability {
        Cap::Chown => 0,
        Cap::DacOverride => 1,
        Cap::DacReadSearch => 2,
        Cap::Fowner => 3,
        Cap::Fsetid => 4,
        Cap::Kill => 5,
        Cap::Setgid => 6,
        Cap::Setuid => 7,
        Cap::Setpcap => 8,
        Cap::LinuxImmutable => 9,
        Cap::NetBindService => 10,
        Cap::NetBroadcast => 11,
        Cap::NetAdmin => 12,
        Cap::NetRaw => 13,
        Cap::IpcLock => 14,
        Cap::IpcOwner => 15,
        Cap::SysModule => 16,
        Cap::SysRawio => 17,
        Cap::SysChroot => 18,
        Cap::SysPtrace => 19,
        Cap::SysPacct => 20,
        Cap::SysAdmin => 21,
        Cap::SysBoot => 22,
        Cap::SysNice => 23,
        Cap::SysResource => 24,
        Cap::SysTime => 25,
        Cap::SysTtyConfig => 26,
        Cap::Mknod => 27,
        Cap::Lease => 28,
        Cap::AuditWrite => 29,
        Cap::AuditControl => 30,
        Cap::Setfcap => 31,
        Cap::MacOverride => 32,
        Cap::MacAdmin => 33,
        Cap::Syslog => 34,
        Cap::WakeAlarm => 35,
        Cap::BlockSuspend => 36,
        Cap::AuditRead => 37,
        Cap::Perfmon => 38,
        Cap::Bpf => 39,
        Cap::CheckpointRestore => 40,
    }
}

fn mask(set: &Option<Capabilities>) -> u64 {
    set.iter().flatten().fold(0, |mask, &capability| mask | 1 << number(capability))
}

/// Makes `sets` the calling thread's: bounding first, while CAP_SETPCAP is there; ambient last, for it must be within
/// permitted and inheritable.
pub fn apply(sets: &LinuxCapabilities) -> io::Result<()> {
    let have = bounding();
    let bound = mask(sets.bounding());
    for capability in 0..64 {
        if have & !bound & (1 << capability) != 0 {
            prctl(libc::PR_CAPBSET_DROP, capability, 0)?;
        }
    }
    let permitted = mask(sets.permitted()) & have;
    let effective = mask(sets.effective()) & permitted;
    let inheritable = mask(sets.inheritable()) & have;
    capset(effective, permitted, inheritable)?;
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR, 0)?;
    let ambient = mask(sets.ambient()) & permitted & inheritable;
    for capability in 0..64 {
        if ambient & (1 << capability) != 0 {
            prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, capability)?;
        }
    }
    Ok(())
}

/// The bounding set of the calling thread.
fn bounding() -> u64 {
    (0..64)
        .filter(|&capability| prctl(libc::PR_CAPBSET_READ, capability, 0).is_ok_and(|answer| answer == 1))
        .fold(0, |mask, capability| mask | 1 << capability)
}

fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: these options take plain numbers and touch no memory of ours.
    match unsafe { libc::prctl(option, first, second, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let word = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: header and data have the layout that version 3 of the call reads; the kernel writes neither on success.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True when the calling thread has the capability of this number in effect.
pub fn effective(capability: u32) -> bool {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and data have the layout of version 3; the kernel fills in both words.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    done == 0 && data[(capability / 32) as usize].effective & (1 << (capability % 32)) != 0
}
