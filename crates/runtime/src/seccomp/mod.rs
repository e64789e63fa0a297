//! Seccomp: from the OCI form of a profile to kernel filters, and the profile behind `RuntimeDefault`.
//!
//! `libcontainer` without the C library `libseccomp` silently leaves a profile out, so the container's first process
//! installs the filters itself right before `exec`. What cannot be expressed (a listener, a denied call that this table
//! does not know, another architecture's calls) is refused with an error: a filter that does less than asked is worse
//! than none, because nobody looks again.
//!
//! A classic BPF filter has one action for its matches, an OCI profile has many: one filter is made per distinct action
//! and they are stacked; the kernel takes the strictest answer, and among equals the filter installed last
//! (`Documentation/userspace-api/seccomp_filter.rst`).

mod profile;
mod syscalls;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

pub use profile::runtime_default;

/// A profile that cannot be honoured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProfileError {
    /// Uses a feature that is not supported.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
    /// The filter could not be built.
    #[error("seccomp profile: {0}")]
    Build(String),
}

/// Rules of one filter: call number to its alternatives (none: always).
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters of `profile`, in the order in which they must be installed.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<BpfProgram>, ProfileError> {
    refuse_unsupported(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut groups: Vec<(SeccompAction, Rules)> = Vec::new();
    for call in profile.syscalls().iter().flatten() {
        let wanted = action(call.action(), call.errno_ret())?;
        if wanted == default {
            continue;
        }
        let rules = match groups.iter_mut().find(|(known, _)| *known == wanted) {
            Some((_, rules)) => rules,
            None => {
                groups.push((wanted.clone(), Rules::new()));
                let last = groups.len() - 1;
                &mut groups[last].1
            }
        };
        add_call(rules, call, wanted == SeccompAction::Allow)?;
    }
    stack(default, groups)
}

fn refuse_unsupported(profile: &LinuxSeccomp) -> Result<(), ProfileError> {
    if profile.listener_path().is_some() {
        return Err(ProfileError::Unsupported("a notification listener".into()));
    }
    let native = |arch: &Arch| {
        matches!(arch, Arch::ScmpArchNative | Arch::ScmpArchX86_64 | Arch::ScmpArchX86 | Arch::ScmpArchX32)
    };
    match profile.architectures() {
        // Calls of the 32-bit tables stay forbidden whatever the profile says: stricter, never laxer.
        Some(list) if !list.is_empty() && !list.iter().any(native) => {
            Err(ProfileError::Unsupported(format!("architecture {}", list[0])))
        }
        _ => Ok(()),
    }
}

/// Turns one OCI rule into conditions. An unknown call in an allow rule is skipped (it stays denied); elsewhere refused.
fn add_call(rules: &mut Rules, call: &LinuxSyscall, allows: bool) -> Result<(), ProfileError> {
    for name in call.names() {
        let Some(number) = syscalls::number(name) else {
            if allows {
                continue;
            }
            return Err(ProfileError::Unsupported(format!("system call {name:?}")));
        };
        let alternatives = rules.entry(number);
        let args = call.args().as_deref().unwrap_or_default();
        if args.is_empty() {
            // No condition: an empty list is "always" and swallows narrower alternatives.
            alternatives.and_modify(Vec::clear).or_default();
            continue;
        }
        let rule = SeccompRule::new(args.iter().map(condition).collect::<Result<_, _>>()?)
            .map_err(|error| ProfileError::Build(error.to_string()))?;
        match alternatives {
            Entry::Vacant(slot) => {
                slot.insert(vec![rule]);
            }
            Entry::Occupied(mut slot) if !slot.get().is_empty() => {
                slot.get_mut().push(rule);
            }
            Entry::Occupied(_) => {}
        }
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> Result<SeccompCondition, ProfileError> {
    use LinuxSeccompOperator as Op;
    let (operator, value) = match arg.op() {
        Op::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        Op::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        Op::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        Op::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        Op::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        Op::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        Op::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0)),
    };
    let index = u8::try_from(arg.index()).map_err(|error| ProfileError::Build(error.to_string()))?;
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|error| ProfileError::Build(error.to_string()))
}

/// One filter per action. Only the allow filter carries the default for what nothing names, so what another filter's
/// rules match must pass it: those rules are added there with their conditions, and the other filter has the last word.
fn stack(
    default: SeccompAction,
    mut groups: Vec<(SeccompAction, Rules)>,
) -> Result<Vec<BpfProgram>, ProfileError> {
    let strict: Vec<(SeccompAction, Rules)> =
        groups.extract_if(.., |(action, _)| *action != SeccompAction::Allow).collect();
    let mut filters = Vec::new();
    if default != SeccompAction::Allow {
        let mut allow = groups.pop().map(|(_, rules)| rules).unwrap_or_default();
        for (number, alternatives) in strict.iter().flat_map(|(_, rules)| rules) {
            match allow.entry(*number) {
                Entry::Vacant(slot) => {
                    slot.insert(alternatives.clone());
                }
                Entry::Occupied(mut slot) if alternatives.is_empty() => slot.get_mut().clear(),
                Entry::Occupied(mut slot) if !slot.get().is_empty() => {
                    slot.get_mut().extend_from_slice(alternatives);
                }
                Entry::Occupied(_) => {}
            }
        }
        filters.push(program(allow, default, SeccompAction::Allow)?);
    }
    for (action, rules) in strict {
        filters.push(program(rules, SeccompAction::Allow, action)?);
    }
    Ok(filters)
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, ProfileError> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|error| ProfileError::Build(error.to_string()))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, ProfileError> {
    use LinuxSeccompAction as Oci;
    Ok(match action {
        Oci::ScmpActAllow => SeccompAction::Allow,
        Oci::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        Oci::ScmpActKill | Oci::ScmpActKillThread => SeccompAction::KillThread,
        Oci::ScmpActKillProcess => SeccompAction::KillProcess,
        Oci::ScmpActLog => SeccompAction::Log,
        Oci::ScmpActTrace => SeccompAction::Trace(errno.unwrap_or(libc::EPERM as u32)),
        Oci::ScmpActTrap => SeccompAction::Trap,
        Oci::ScmpActNotify => return Err(ProfileError::Unsupported("action SCMP_ACT_NOTIFY".into())),
    })
}

/// Installs `filters` on the calling thread. Without `no_new_privs` this needs CAP_SYS_ADMIN.
///
/// (`seccompiler::apply_filter` would set `no_new_privs` on the way, which would break set-user-ID programs.)
pub(crate) fn install(filters: &[BpfProgram]) -> std::io::Result<()> {
    for filter in filters {
        let length = u16::try_from(filter.len()).map_err(std::io::Error::other)?;
        let program =
            libc::sock_fprog { len: length, filter: filter.as_ptr().cast::<libc::sock_filter>().cast_mut() };
        // SAFETY: `program` points at `length` instructions of the kernel's own layout that outlive the call.
        let done =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
