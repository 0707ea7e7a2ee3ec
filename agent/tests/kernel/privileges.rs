//! What the agent may and may not do, and what it says when it may not.
//!
//! Capabilities, user ids and seccomp filters belong to processes, so these tests start this test binary again, as
//! their subject.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use sluice_agent::kernel::{Kernel, LoadOptions};

use crate::namespace::{By, Scene};

/// Asks [`subject`] to play its part; the value may name `log` and `seccomp`.
const PART: &str = "SLUICE_TEST_SUBJECT";
const UNPRIVILEGED: &str = "--reuid 65532 --regid 65532 --clear-groups";

/// Started by the other tests under the circumstances that they are about: does all that an agent does with the kernel
/// and prints what came of it. Run by itself it does so as whoever runs it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn subject() {
    let part = env::var(PART).unwrap_or_default();
    if part.is_empty() {
        return crate::namespace::in_namespace(|| works(LoadOptions::default()));
    }
    if part.contains("seccomp") {
        refuse_bpf();
    }
    let options = LoadOptions { log: part.contains("log") };
    match Kernel::load(options) {
        Ok(kernel) => {
            drop(kernel);
            works(options);
            println!("RESULT: works");
        }
        Err(error) => println!("RESULT: {error}"),
    }
}

fn works(options: LoadOptions) {
    let mut scene = Scene::with(options);
    scene.app("127.0.0.1:8080", false);
    scene.app("[::1]:8080", true);
    scene.exempting(&[8080], &["127.5.0.0/16"]);
    assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent);
    assert_eq!(scene.connect("[::1]:8080"), By::Agent);
    assert_eq!(scene.connect_from(Some("127.5.0.1"), "127.0.0.1:8080").0, By::App);
    assert!(scene.kernel.held().unwrap().attached);

    // The dialer's IPv6 way needs a route of its own.
    scene.apps.remove(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        sluice_agent::dialer::AppDialer::new().connect("127.0.0.1:8080".parse().unwrap()).await.unwrap();
    });
    assert_eq!(scene.accept().0, By::App);
    scene.steer(&[]);
    assert_eq!(scene.connect("[::1]:8080"), By::App);
}

fn refuse_bpf() {
    let arch: TargetArch = env::consts::ARCH.try_into().unwrap();
    let rules = BTreeMap::from([(libc::SYS_bpf, vec![])]);
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Starts the subject in a new network namespace behind a command such as `setpriv`, and returns its result.
fn result_of(part: &str, namespaces: &str, prepare: &str, command: &str) -> String {
    // The test binary may lie where only its builder can read.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("subject");
    fs::copy(env::current_exe().unwrap(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();

    let script = format!(
        "set -e; ip link set lo up; {prepare} exec {command} {} \
         --exact privileges::subject --include-ignored --nocapture",
        binary.display()
    );
    let Output { status, stdout, stderr } = Command::new("unshare")
        .args(namespaces.split_whitespace())
        .args(["--net", "sh", "-c", &script])
        .env(PART, part)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{stdout}{stderr}");
    let result = stdout.split_once("RESULT: ").and_then(|(_, rest)| rest.lines().next());
    result.unwrap_or_else(|| panic!("no result: {stdout}{stderr}")).to_owned()
}

/// With exactly these capabilities, which are also all that can be had again, and no user id that means anything.
fn with_capabilities(part: &str, capabilities: &[&str]) -> String {
    let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    let command =
        format!("setpriv {UNPRIVILEGED} --bounding-set=-all{set} --inh-caps=-all{set} --ambient-caps=-all{set}");
    result_of(part, "", "", &command)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn works_with_exactly_three_capabilities_and_any_user_id() {
    assert_eq!(with_capabilities("plain", &["bpf", "net_admin", "perfmon"]), "works");
    assert_eq!(with_capabilities("log", &["bpf", "net_admin", "perfmon"]), "works");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn perfmon_is_needed_for_the_kernel_log_only() {
    assert_eq!(with_capabilities("plain", &["bpf", "net_admin"]), "works");
    let result = with_capabilities("log", &["bpf", "net_admin"]);
    assert!(result.contains("this process lacks CAP_PERFMON;"), "{result}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn says_which_capability_is_missing() {
    let result = with_capabilities("plain", &["net_admin", "perfmon"]);
    assert!(result.contains("this process lacks CAP_BPF;"), "{result}");
    let result = with_capabilities("plain", &["bpf", "perfmon"]);
    assert!(result.contains("this process lacks CAP_NET_ADMIN;"), "{result}");
    let result = with_capabilities("plain", &[]);
    assert!(result.contains("this process lacks CAP_BPF and CAP_NET_ADMIN;"), "{result}");
    assert!(result.contains("capabilities.add: [BPF, NET_ADMIN]"), "{result}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn works_with_proc_sys_read_only() {
    let prepare = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; \
                   if echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward; then echo still writable; exit 1; fi;";
    assert_eq!(result_of("plain", "--mount", prepare, ""), "works");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn says_that_a_seccomp_filter_refuses() {
    let result = result_of("seccomp", "", "", "");
    assert!(result.contains("seccompProfile"), "{result}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn says_that_a_user_namespace_is_in_the_way() {
    let result = result_of("plain", "--user --map-root-user", "", "");
    assert!(result.contains("user namespace") && result.contains("hostUsers"), "{result}");
}
