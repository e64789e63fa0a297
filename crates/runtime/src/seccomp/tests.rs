//! Profiles are judged by interpreting the compiled filters, as the kernel would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use oci_spec::runtime::{Capability, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};

use super::*;

const ARCH: u32 = 0xc000_003e;

/// The answer of one filter for a call: an interpreter of the classic BPF subset that seccomp filters use.
fn run(program: &BpfProgram, number: i64, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend((number as u32).to_le_bytes());
    data.extend(ARCH.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut accumulator, mut at) = (0u32, 0usize);
    for _ in 0..10_000 {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => {
                let from = step.k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x54 => accumulator &= step.k,
            0x06 => return step.k,
            code => panic!("unexpected instruction {code:#x}"),
        }
    }
    panic!("filter does not end");
}

/// The kernel's verdict over a stack: the strictest answer, the last one among equals.
fn verdict(filters: &[BpfProgram], name: &str, args: [u64; 6]) -> u32 {
    let number = syscalls::number(name).unwrap();
    let strictness = |answer: u32| (answer & 0xffff_0000) as i32;
    filters
        .iter()
        .map(|filter| run(filter, number, args))
        .fold(0x7fff_0000, |kept, new| if strictness(new) <= strictness(kept) { new } else { kept })
}

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

fn default_profile(capabilities: &[Capability]) -> Vec<BpfProgram> {
    compile(&runtime_default(&capabilities.iter().copied().collect())).unwrap()
}

#[test]
fn the_default_profile_filters_as_container_engines_do() {
    let filters = default_profile(&[]);
    for name in ["read", "execve", "futex", "openat2", "setuid", "ptrace", "capset", "prctl"] {
        assert_eq!(verdict(&filters, name, [0; 6]), ALLOW, "{name}");
    }
    for name in
        ["mount", "unshare", "keyctl", "bpf", "setns", "reboot", "kexec_load", "io_uring_setup", "chroot"]
    {
        assert_eq!(verdict(&filters, name, [0; 6]), EPERM, "{name}");
    }
    assert_eq!(verdict(&filters, "clone3", [0; 6]), ENOSYS);
    assert_eq!(verdict(&filters, "clone", [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filters, "clone", [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&filters, "socket", [libc::AF_INET as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filters, "socket", [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&filters, "personality", [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filters, "personality", [0x0040_0000, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn capabilities_open_the_calls_they_are_for() {
    let admin = default_profile(&[Capability::SysAdmin]);
    for name in ["mount", "unshare", "setns", "clone3"] {
        assert_eq!(verdict(&admin, name, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), ALLOW, "{name}");
    }
    assert_eq!(verdict(&admin, "clone", [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&admin, "reboot", [0; 6]), EPERM);
    assert_eq!(verdict(&default_profile(&[Capability::SysChroot]), "chroot", [0; 6]), ALLOW);
}

fn rule(name: &str, action: LinuxSeccompAction) -> LinuxSyscall {
    LinuxSyscallBuilder::default().names(vec![name.to_owned()]).action(action).build().unwrap()
}

fn profile(default: LinuxSeccompAction, rules: Vec<LinuxSyscall>) -> LinuxSeccomp {
    LinuxSeccompBuilder::default().default_action(default).syscalls(rules).build().unwrap()
}

#[test]
fn deny_lists_and_conditions_work() {
    let arg = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(libc::PR_SET_NAME as u64)
        .op(LinuxSeccompOperator::ScmpCmpEq)
        .build()
        .unwrap();
    let mut named = rule("prctl", LinuxSeccompAction::ScmpActErrno);
    named.set_args(Some(vec![arg]));
    let filters = compile(&profile(
        LinuxSeccompAction::ScmpActAllow,
        vec![named, rule("mkdir", LinuxSeccompAction::ScmpActKillProcess)],
    ))
    .unwrap();
    assert_eq!(verdict(&filters, "prctl", [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&filters, "prctl", [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filters, "mkdir", [0; 6]), 0x8000_0000);
    assert_eq!(verdict(&filters, "mkdirat", [0; 6]), ALLOW);
}

#[test]
fn a_conditional_denial_opens_nothing_else() {
    let arg = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(15u64)
        .op(LinuxSeccompOperator::ScmpCmpEq)
        .build()
        .unwrap();
    let mut named = rule("prctl", LinuxSeccompAction::ScmpActLog);
    named.set_args(Some(vec![arg]));
    let filters = compile(&profile(LinuxSeccompAction::ScmpActErrno, vec![named])).unwrap();
    assert_eq!(verdict(&filters, "prctl", [15, 0, 0, 0, 0, 0]), 0x7ffc_0000);
    assert_eq!(verdict(&filters, "prctl", [16, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let unknown = profile(
        LinuxSeccompAction::ScmpActAllow,
        vec![rule("no_such_call", LinuxSeccompAction::ScmpActErrno)],
    );
    assert!(matches!(compile(&unknown), Err(ProfileError::Unsupported(_))));
    let notify =
        profile(LinuxSeccompAction::ScmpActErrno, vec![rule("mount", LinuxSeccompAction::ScmpActNotify)]);
    assert!(matches!(compile(&notify), Err(ProfileError::Unsupported(_))));
    let mut foreign = profile(LinuxSeccompAction::ScmpActErrno, vec![]);
    foreign.set_architectures(Some(vec![Arch::ScmpArchAarch64]));
    assert!(matches!(compile(&foreign), Err(ProfileError::Unsupported(_))));
    // Denied by default, so an unknown name in an allow rule costs nothing.
    let lenient = profile(
        LinuxSeccompAction::ScmpActErrno,
        vec![rule("no_such_call", LinuxSeccompAction::ScmpActAllow)],
    );
    assert!(compile(&lenient).is_ok());
}
