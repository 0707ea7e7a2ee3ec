//! Which connections go where.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::{sched::CloneFlags, unistd::gettid};
use sluice_agent::kernel::{ApplyError, KernelCounters, PortKey};

use crate::namespace::{By, Scene, caller, eventually, in_namespace, linked_programs, run};

#[test]
#[ignore = "needs root: cargo xtask test"]
fn steers_ipv4_ipv6_and_both_on_one_socket() {
    in_namespace(|| {
        run("ip addr add 10.9.0.1/32 dev lo");
        run("ip addr add fd00:9::1/128 dev lo nodad");
        let mut scene = Scene::new();
        scene.app("0.0.0.0:8080", false);
        scene.app("[::]:8080", true);
        scene.app("[::]:8081", false);
        scene.app("127.0.0.1:8082", false);
        for target in ["127.0.0.1:8080", "10.9.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "[fd00:9::1]:8081"] {
            assert_eq!(scene.connect(target), By::App, "{target}, nothing steered");
        }

        scene.steer(&[8080, 8081]);
        for target in [
            "127.0.0.1:8080",
            "10.9.0.1:8080",
            "[::1]:8080",
            "[fd00:9::1]:8080",
            "127.0.0.1:8081",
            "10.9.0.1:8081",
            "[::1]:8081",
        ] {
            let (by, accepted, caller) = scene.connect_from(None, target);
            assert_eq!(by, By::Agent, "{target}");
            assert_eq!(accepted.local_addr().unwrap(), target.parse().unwrap(), "the original destination");
            assert_eq!(accepted.peer_addr().unwrap(), caller.local_addr().unwrap(), "the caller's own address");
        }
        assert_eq!(scene.connect("127.0.0.1:8082"), By::App, "a port that is not listed");
        assert_eq!(scene.kernel.counters().unwrap().steered, 7);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn steers_callers_from_elsewhere() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("0.0.0.0:8080", false);
        scene.app("[::]:8080", true);
        scene.exempting(&[8080], &["10.9.1.3/32"]);
        let pod = gettid();
        run("ip link add name pod type veth peer name caller");
        run("ip addr add 10.9.1.1/24 dev pod");
        run("ip addr add fd00:9:1::1/64 dev pod nodad");
        run("ip link set pod up");

        let (arrived, proceed) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        thread::scope(|scope| {
            let (ready_tx, connect_rx) = (arrived.0, proceed.1);
            scope.spawn(move || {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
                // From here, so that the interface is there for sure before it gets its addresses.
                run(&format!("nsenter --net=/proc/{pod}/ns/net ip link set caller netns {}", gettid()));
                run("ip addr add 10.9.1.2/24 dev caller");
                run("ip addr add 10.9.1.3/24 dev caller");
                run("ip addr add fd00:9:1::2/64 dev caller nodad");
                run("ip link set caller up");
                ready_tx.send(None).unwrap();
                for (source, target) in connect_rx {
                    ready_tx.send(Some(caller(Some(source), target))).unwrap();
                }
            });
            let ready_rx = arrived.1;
            assert!(ready_rx.recv().unwrap().is_none());
            for (source, target, expected) in [
                ("10.9.1.2", "10.9.1.1:8080", By::Agent),
                ("10.9.1.3", "10.9.1.1:8080", By::App),
                ("fd00:9:1::2", "[fd00:9:1::1]:8080", By::Agent),
            ] {
                proceed.0.send((source, target)).unwrap();
                let connected = ready_rx.recv().unwrap().unwrap();
                let (by, accepted) = scene.accept();
                assert_eq!(by, expected, "{source} to {target}");
                assert_eq!(accepted.peer_addr().unwrap(), connected.local_addr().unwrap());
                assert_eq!(accepted.local_addr().unwrap(), target.parse().unwrap());
            }
            drop(proceed.0);
        });
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connections_that_were_there_stay_with_the_app() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("127.0.0.1:8080", false);
        let (by, mut accepted, mut caller) = scene.connect_from(None, "127.0.0.1:8080");
        assert_eq!(by, By::App);
        scene.steer(&[8080]);
        echo(&mut caller, &mut accepted);
        echo(&mut accepted, &mut caller);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn exempt_sources_reach_the_app() {
    in_namespace(|| {
        run("ip addr add 10.9.0.1/24 dev lo");
        run("ip addr add 10.9.0.2/24 dev lo");
        run("ip addr add fd00:9::1/64 dev lo nodad");
        let mut scene = Scene::new();
        scene.app("0.0.0.0:8080", false);
        scene.app("[::]:8080", true);
        let to = |scene: &Scene, source, target| scene.connect_from(Some(source), target).0;

        scene.exempting(&[8080], &["10.9.0.2/32", "fd00:9::1/128"]);
        assert_eq!(to(&scene, "10.9.0.1", "10.9.0.1:8080"), By::Agent);
        assert_eq!(to(&scene, "10.9.0.2", "10.9.0.1:8080"), By::App);
        assert_eq!(to(&scene, "fd00:9::1", "[fd00:9::1]:8080"), By::App);
        assert_eq!(scene.kernel.counters().unwrap().exempt, 2);

        scene.exempting(&[8080], &["10.9.0.0/24"]);
        assert_eq!(to(&scene, "10.9.0.1", "10.9.0.1:8080"), By::App);
        assert_eq!(to(&scene, "10.9.0.2", "10.9.0.1:8080"), By::App);
        assert_eq!(to(&scene, "fd00:9::1", "[fd00:9::1]:8080"), By::Agent, "no longer exempt");
        assert_eq!(to(&scene, "127.0.0.1", "127.0.0.1:8080"), By::Agent);

        scene.exempting(&[8080], &["::/0"]);
        assert_eq!(to(&scene, "10.9.0.1", "10.9.0.1:8080"), By::Agent, "all of IPv6 holds no IPv4");
        assert_eq!(to(&scene, "fd00:9::1", "[fd00:9::1]:8080"), By::App);

        let held = scene.kernel.held().unwrap();
        assert_eq!(held.exempt, ["::/0".parse().unwrap()].into());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn own_sources_reach_the_app_also_at_the_pods_own_address() {
    in_namespace(|| {
        run("ip link add name pod type veth peer name other");
        run("ip addr add 10.9.0.1/24 dev pod");
        run("ip link set pod up");
        run("ip link set other up");
        let mut scene = Scene::new();
        scene.app("0.0.0.0:8080", false);
        scene.steer(&[8080]);
        for source in ["127.77.0.1", "127.77.255.254"] {
            assert_eq!(scene.connect_from(Some(source), "127.0.0.1:8080").0, By::App);
            assert_eq!(scene.connect_from(Some(source), "10.9.0.1:8080").0, By::App);
        }
        assert_eq!(scene.connect_from(Some("127.78.0.1"), "127.0.0.1:8080").0, By::Agent);
        let counters = scene.kernel.counters().unwrap();
        assert_eq!(counters, KernelCounters { steered: 1, exempt: 0, own: 4, no_listener: 0 });
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_closed_listener_means_the_app() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("0.0.0.0:8080", false);
        scene.app("[::]:8080", true);
        scene.steer(&[8080]);
        assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent);
        scene.agent.as_mut().unwrap().v6 = None;
        assert_eq!(scene.connect("[::1]:8080"), By::App);
        assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent);
        scene.agent = None;
        assert_eq!(scene.connect("127.0.0.1:8080"), By::App);
        assert_eq!(scene.kernel.counters().unwrap().no_listener, 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn attached_with_the_first_port_and_detached_with_the_last() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("127.0.0.1:8080", false);
        assert!(linked_programs().is_empty(), "loaded, and nothing steered");
        assert!(!scene.kernel.held().unwrap().attached);

        scene.steer(&[8080, 8081]);
        assert_eq!(linked_programs().len(), 1);
        let held = scene.kernel.held().unwrap();
        assert!(held.attached);
        assert_eq!(held.ports, [PortKey::tcp(8080), PortKey::tcp(8081)].into());
        scene.steer(&[8080]);
        assert_eq!(linked_programs().len(), 1);

        scene.steer(&[]);
        assert!(linked_programs().is_empty());
        assert_eq!(scene.connect("127.0.0.1:8080"), By::App);
        assert_eq!(scene.kernel.held().unwrap(), sluice_agent::kernel::Held::default());

        scene.steer(&[8080]);
        assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent);
        scene.kernel.detach();
        assert!(linked_programs().is_empty());
        assert_eq!(scene.connect("127.0.0.1:8080"), By::App);
        scene.steer(&[8080]);
        assert_eq!(scene.connect("127.0.0.1:8080"), By::Agent, "attached again");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn dropping_the_kernel_part_leaves_nothing() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("127.0.0.1:8080", false);
        scene.steer(&[8080]);
        let [program] = linked_programs()[..] else { panic!("one link") };
        let Scene { kernel, agent, apps } = scene;
        drop(kernel);
        // The listeners are still open: it is the link that counts.
        let rest = Remaining { agent, apps };
        rest.app_answers("127.0.0.1:8080");
        assert!(linked_programs().is_empty());
        eventually("the program is unloaded", || {
            let gone =
                std::process::Command::new("bpftool").args(["prog", "show", "id", &program.to_string()]).output();
            !gone.unwrap().status.success()
        });
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_that_stays_wanted_is_steered_at_every_moment() {
    in_namespace(|| {
        let mut scene = Scene::new();
        scene.app("127.0.0.1:8080", false);
        scene.steer(&[8080]);
        let app = scene.apps[0].try_clone().unwrap();
        app.set_nonblocking(true).unwrap();
        let agent = scene.agent.take().unwrap();
        agent.v4.set_nonblocking(false).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let callers = scope.spawn(|| {
                let mut connections = 0;
                while !stop.load(Ordering::Relaxed) {
                    let _caller = caller(None, "127.0.0.1:8080");
                    agent.v4.accept().unwrap();
                    connections += 1;
                }
                connections
            });
            for round in 0..500_u16 {
                let others: Vec<u16> = (0..round % 7).map(|port| 9000 + round + port).chain([8080]).collect();
                scene.exempting(&others, &["10.0.0.0/8"][..usize::from(round % 2)]);
            }
            stop.store(true, Ordering::Relaxed);
            assert!(callers.join().unwrap() > 100, "enough connections fell between two changes");
        });
        assert_eq!(app.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "none reached the app");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn too_much_is_refused_and_all_that_fits_can_be_exchanged() {
    in_namespace(|| {
        let mut scene = Scene::new();
        let ports = |range: std::ops::Range<u16>| range.map(PortKey::tcp).collect();
        scene.kernel.apply(&ports(1000..1512), &[]).unwrap();
        scene.kernel.apply(&ports(2000..2512), &[]).unwrap();
        assert_eq!(scene.kernel.held().unwrap().ports, ports(2000..2512));
        let error = scene.kernel.apply(&ports(3000..3513), &[]).unwrap_err();
        assert!(matches!(error, ApplyError::TooManyPorts { wanted: 513, limit: 512 }), "{error}");
        assert_eq!(scene.kernel.held().unwrap().ports, ports(2000..2512), "as it was");
    });
}

/// What is left of a scene when the kernel part is gone.
struct Remaining {
    agent: Option<sluice_agent::kernel::Listeners>,
    apps: Vec<std::net::TcpListener>,
}

impl Remaining {
    fn app_answers(&self, target: &str) {
        let connected = caller(None, target);
        let (_, peer) = self.apps[0].accept().unwrap();
        assert_eq!(peer, connected.local_addr().unwrap());
        let agent = &self.agent.as_ref().unwrap().v4;
        assert_eq!(agent.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

fn echo(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"still here").unwrap();
    let mut read = [0; 10];
    to.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"still here");
}
