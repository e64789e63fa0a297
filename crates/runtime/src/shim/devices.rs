//! Device rules on the unified hierarchy: one small eBPF program per container (v1 has files for it, v2 has none).
//!
//! The kernel asks the program at every open and mknod of a device: `{ u32 access << 16 | type, u32 major, u32 minor }`,
//! answer 1 to permit (`BPF_PROG_TYPE_CGROUP_DEVICE`). Later rules win, so the program tries them last to first.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Kinds of device and of access in the program's context.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// One instruction: `u8 opcode, u4 dst, u4 src, i16 offset, i32 immediate`.
type Instruction = [u8; 8];

fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    let mut bytes = [opcode, src << 4 | dst, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..].copy_from_slice(&immediate.to_le_bytes());
    bytes
}

/// Registers: r2 type, r3 access, r4 major, r5 minor; r6 scratch.
fn program(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(0x61, 2, 1, 0, 0),      // r2 = ctx.access_type
        instruction(0xbc, 3, 2, 0, 0),      // w3 = w2
        instruction(0x54, 2, 0, 0, 0xffff), // w2 &= 0xffff
        instruction(0x74, 3, 0, 0, 16),     // w3 >>= 16
        instruction(0x61, 4, 1, 4, 0),      // r4 = ctx.major
        instruction(0x61, 5, 1, 8, 0),      // r5 = ctx.minor
    ];
    for rule in rules.iter().rev() {
        let tests_and_answer = rule_code(rule);
        let always = tests_and_answer.len() == 2;
        code.extend(tests_and_answer);
        if always {
            // The kernel refuses programs with code that cannot be reached.
            return code;
        }
    }
    code.extend([instruction(0xb4, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]); // w0 = 0; exit
    code
}

/// Tests of one rule, each jumping past the rule when it does not match, then the answer.
fn rule_code(rule: &LinuxDeviceCgroup) -> Vec<Instruction> {
    let mut tests: Vec<Instruction> = Vec::new();
    let equal = |register, value| instruction(0x56, register, 0, 0, value); // if wN != value goto next rule
    match rule.typ() {
        Some(LinuxDeviceType::B) => tests.push(equal(2, BLOCK)),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => tests.push(equal(2, CHARACTER)),
        _ => {}
    }
    let access = rule.access().as_deref().unwrap_or("rwm").chars().fold(0, |mask, letter| {
        mask | match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    });
    if access != READ | WRITE | MKNOD {
        tests.push(instruction(0xbc, 6, 3, 0, 0)); // w6 = w3
        if rule.allow() {
            // Everything asked for must be allowed by this rule.
            tests.push(instruction(0x54, 6, 0, 0, !access));
            tests.push(equal(6, 0));
        } else {
            // Anything asked for that the rule denies is enough.
            tests.push(instruction(0x54, 6, 0, 0, access));
            tests.push(instruction(0x16, 6, 0, 0, 0)); // if w6 == 0 goto next rule
        }
    }
    for (register, number) in [(4, rule.major()), (5, rule.minor())] {
        if let Some(number) =
            number.filter(|&number| number >= 0).and_then(|number| i32::try_from(number).ok())
        {
            tests.push(equal(register, number));
        }
    }
    let answer = [instruction(0xb4, 0, 0, 0, i32::from(rule.allow())), instruction(0x95, 0, 0, 0, 0)];
    let length = tests.len();
    for (at, test) in tests.iter_mut().enumerate() {
        if matches!(test[0], 0x56 | 0x16) {
            let past = (length - at - 1 + answer.len()) as i16;
            test[2..4].copy_from_slice(&past.to_le_bytes());
        }
    }
    tests.extend(answer);
    tests
}

/// Attributes of BPF_PROG_LOAD as far as they are used; the kernel takes what is missing as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is plain data of the layout of `command`, and everything it points at outlives the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

/// Restricts devices of the cgroup at `folder` (in the unified hierarchy) to `rules`.
pub fn restrict(folder: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let code = program(rules);
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let folder = File::open(folder)?;
    let attach = Attach {
        target_fd: folder.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Runs the program over one question, as the kernel would.
    fn ask(code: &[Instruction], typ: i32, access: i32, major: i32, minor: i32) -> i32 {
        let mut registers = [0i64; 11];
        let context = [access << 16 | typ, major, minor];
        let mut at = 0usize;
        for _ in 0..1000 {
            let [opcode, regs, o0, o1, i0, i1, i2, i3] = code[at];
            let (dst, src) = ((regs & 15) as usize, (regs >> 4) as usize);
            let (offset, value) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
            at += 1;
            match opcode {
                0x61 => registers[dst] = i64::from(context[offset as usize / 4]),
                0xbc => registers[dst] = registers[src],
                0x54 => registers[dst] &= i64::from(value as u32),
                0x74 => registers[dst] >>= value,
                0xb4 => registers[dst] = i64::from(value),
                0x56 if registers[dst] as i32 != value => at += offset as usize,
                0x16 if registers[dst] as i32 == value => at += offset as usize,
                0x56 | 0x16 => {}
                0x95 => return registers[0] as i32,
                other => panic!("opcode {other:#x}"),
            }
        }
        panic!("program does not end");
    }

    /// On a hybrid host too: the program hangs on the unified hierarchy, which is enough to try it.
    #[test]
    fn the_kernel_takes_the_program_and_obeys_it() {
        let cgroups = crate::cgroup::Cgroups::detect().unwrap();
        let name = format!("/skiff-devices-{}", std::process::id());
        let folder = cgroups.unified(&name).expect("a unified hierarchy");
        std::fs::create_dir(&folder).unwrap();
        let restricted = restrict(&folder, &crate::defaults::devices().unwrap());
        let script = format!(
            "echo $$ > {}/cgroup.procs; : < /dev/null && : < /dev/zero && echo harmless; (: < /dev/kmsg) 2>/dev/null || echo shut",
            folder.display()
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        cgroups.remove(&name).unwrap();
        restricted.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "harmless\nshut\n");
    }

    #[test]
    fn default_rules_permit_the_harmless_devices_only() {
        let code = program(&crate::defaults::devices().unwrap());
        assert_eq!(ask(&code, CHARACTER, READ | WRITE, 1, 3), 1, "null");
        assert_eq!(ask(&code, CHARACTER, READ | WRITE, 136, 7), 1, "any pts");
        assert_eq!(ask(&code, CHARACTER, READ, 1, 1), 0, "mem");
        assert_eq!(ask(&code, BLOCK, READ, 8, 0), 0, "sda");
        assert_eq!(ask(&code, BLOCK, MKNOD, 8, 0), 1, "a node may be made");
        assert_eq!(ask(&code, BLOCK, MKNOD | READ, 8, 0), 0);
        assert_eq!(ask(&program(&[]), CHARACTER, READ, 1, 3), 0, "no rule permits nothing");
    }
}
