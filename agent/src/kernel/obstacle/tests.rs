use super::*;

const IDENTITY: &str = "         0          0 4294967295\n";
const NEEDED: &[Capability] = &[Capability::Bpf, Capability::NetAdmin];

fn circumstances(effective: u64, seccomp: u8, uid_map: &str, release: &str) -> Circumstances {
    let status = format!("Name:\tsluice-agent\nCapEff:\t{effective:016x}\nNoNewPrivs:\t0\nSeccomp:\t{seccomp}\n");
    Circumstances::parse(&status, uid_map, release)
}

fn explain(errno: Errno, circumstances: &Circumstances) -> Obstacle {
    Obstacle::explain(&io::Error::from_raw_os_error(errno as i32), NEEDED, circumstances)
}

fn all() -> u64 {
    NEEDED.iter().map(|capability| capability.bit()).sum()
}

#[test]
fn names_exactly_the_capabilities_that_are_missing() {
    for (has, missing) in [
        (Capability::Bpf.bit(), vec![Capability::NetAdmin]),
        (Capability::NetAdmin.bit(), vec![Capability::Bpf]),
        (0, vec![Capability::Bpf, Capability::NetAdmin]),
        (1 << 21, vec![Capability::NetAdmin]),
    ] {
        assert_eq!(explain(Errno::EPERM, &circumstances(has, 0, IDENTITY, "6.18.44")), Obstacle::Capabilities(missing));
    }
}

#[test]
fn the_text_for_capabilities_can_be_pasted_into_a_pod() {
    let text = Obstacle::Capabilities(vec![Capability::Bpf, Capability::NetAdmin]).to_string();
    assert!(text.contains("lacks CAP_BPF and CAP_NET_ADMIN"), "{text}");
    assert!(text.contains("capabilities.add: [BPF, NET_ADMIN]"), "{text}");
}

#[test]
fn a_user_namespace_comes_before_its_worthless_capabilities() {
    let inside = circumstances(u64::MAX, 0, "         0     100000      65536\n", "6.18.44");
    assert_eq!(explain(Errno::EPERM, &inside), Obstacle::UserNamespace);
}

#[test]
fn seccomp_is_blamed_only_when_the_capabilities_are_there() {
    assert_eq!(explain(Errno::EPERM, &circumstances(all(), 2, IDENTITY, "6.1.0")), Obstacle::Seccomp);
    assert_eq!(explain(Errno::ENOSYS, &circumstances(all(), 2, IDENTITY, "6.1.0")), Obstacle::Seccomp);
    assert!(matches!(explain(Errno::EPERM, &circumstances(0, 2, IDENTITY, "6.1.0")), Obstacle::Capabilities(_)));
}

#[test]
fn old_kernels_are_told_from_kernels_without_the_feature() {
    let old = circumstances(all(), 0, IDENTITY, "5.4.0-150-generic");
    let new = circumstances(all(), 0, IDENTITY, "5.15.0");
    assert!(matches!(explain(Errno::EINVAL, &old), Obstacle::KernelTooOld { .. }));
    assert!(matches!(explain(Errno::EPERM, &old), Obstacle::KernelTooOld { .. }));
    assert!(matches!(explain(Errno::EINVAL, &new), Obstacle::NotConfigured { .. }));
    assert!(matches!(explain(Errno::ENOSYS, &new), Obstacle::NotConfigured { .. }));
}

#[test]
fn locked_memory_is_blamed_only_where_it_counts() {
    assert_eq!(explain(Errno::EPERM, &circumstances(all(), 0, IDENTITY, "5.10.200")), Obstacle::LockedMemory);
    assert_eq!(explain(Errno::EPERM, &circumstances(all(), 0, IDENTITY, "5.11.0")), Obstacle::SecurityModule);
}

#[test]
fn an_unreadable_proc_hides_nothing() {
    let unread = Circumstances::parse("", "", "");
    assert_eq!(explain(Errno::EPERM, &unread), Obstacle::SecurityModule);
    assert!(matches!(explain(Errno::EINVAL, &unread), Obstacle::NotConfigured { .. }));
    assert_eq!(explain(Errno::EMFILE, &unread), Obstacle::Unknown);
}
