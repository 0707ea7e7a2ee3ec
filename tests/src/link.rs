//! A cable between two hosts, and what can happen to it.
//!
//! Each end is a device with all addresses of its host and a host route to each address of the other: a host may have
//! any number of links and keeps its addresses on all of them. Packets are dropped by nftables where they arrive
//! (netdev ingress), so the sender sees nothing: the silence of a cut cable, not an error.

pub(crate) mod shape;

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    process::{ChildStdin, ChildStdout, Command},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::shape::{Direction, Shape, ShapeOrder};
use crate::{binaries, command, host::Host, process::Process};

/// A link between two hosts. It stays when this is dropped: the lab takes it down.
#[derive(Debug)]
pub struct Link {
    a: End,
    b: End,
    process: Option<Arc<Mutex<LinkProcess>>>,
}

#[derive(Debug)]
struct End {
    host: Host,
    device: String,
}

/// The program that moves packets between two TUN devices. The lab keeps it for as long as it lasts itself.
#[derive(Debug)]
pub(crate) struct LinkProcess {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

// === impl Link ===

impl Link {
    pub(crate) fn ethernet(a: &Host, b: &Host) -> Result<Self> {
        let link = Self { a: End::new(a, b), b: End::new(b, a), process: None };
        let (a_path, b_path) = (a.namespace_path(), b.namespace_path());
        let (a_netns, b_netns) = (file_name(&a_path)?, file_name(&b_path)?);
        let (a_device, b_device) = (link.a.device.as_str(), link.b.device.as_str());
        // Made inside the two namespaces from the start: no moment in which the machine itself has the devices.
        let arguments = ["link", "add", "name", a_device, "netns", a_netns, "type", "veth"];
        command::run("ip", &[&arguments[..], &["peer", "name", b_device, "netns", b_netns]].concat(), "")?;
        link.configure()?;
        Ok(link)
    }

    pub(crate) fn shaped(a: &Host, b: &Host, shape: Shape) -> Result<(Self, Arc<Mutex<LinkProcess>>)> {
        let (a_end, b_end) = (End::new(a, b), End::new(b, a));
        let mut command = Command::new(binaries::find("sluice-link")?);
        command.arg("--a").arg(a.namespace_path()).args(["--a-device", &a_end.device]);
        command.arg("--b").arg(b.namespace_path()).args(["--b-device", &b_end.device]);
        let (process, orders, answers) = a.spawn_piped(command)?;
        let mut process = LinkProcess { process, orders, answers: BufReader::new(answers) };
        process.answer()?;
        for direction in [Direction::AToB, Direction::BToA] {
            process.order(ShapeOrder { direction, shape })?;
        }
        let process = Arc::new(Mutex::new(process));
        let link = Self { a: a_end, b: b_end, process: Some(Arc::clone(&process)) };
        for end in [&link.a, &link.b] {
            // Long enough for the bursts of a TCP connection: what gets lost, the link process decides, and not the
            // queue between it and the kernel.
            end.ip(&format!("link set dev {} txqueuelen 10000\n", end.device))?;
        }
        link.configure()?;
        Ok((link, process))
    }

    /// Changes how a shaped link treats the packets of one direction. Packets under way keep their times.
    pub fn shape(&self, direction: Direction, shape: Shape) -> Result<()> {
        let Some(process) = &self.process else { bail!("only links made by connect_shaped can be shaped") };
        process.lock().unwrap_or_else(PoisonError::into_inner).order(ShapeOrder { direction, shape })
    }

    /// From now on no packet arrives, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        self.cut_way(Direction::AToB)?;
        self.cut_way(Direction::BToA)
    }

    /// The same in one direction only.
    pub fn cut_way(&self, direction: Direction) -> Result<()> {
        self.arriving(direction).filter("drop")
    }

    /// So many packets in 100 get lost in one direction.
    pub fn lose(&self, direction: Direction, percent: u8) -> Result<()> {
        ensure!(percent <= 100, "{percent} % of the packets");
        for end in [&self.a, &self.b] {
            // Otherwise the kernel hands on up to 64 KiB as one packet, and loses them as one.
            end.ip(&format!("link set dev {} gso_max_segs 1\n", end.device))?;
        }
        self.arriving(direction).filter(&format!("numgen random mod 100 < {percent} drop"))
    }

    /// Ends cutting and losing, in both directions.
    pub fn heal(&self) -> Result<()> {
        self.a.filter("")?;
        self.b.filter("")
    }

    /// Pulls the cable: both ends see that the carrier is gone, and the routes with it.
    pub fn unplug(&self) -> Result<()> {
        for end in [&self.a, &self.b] {
            end.ip(&format!("link set dev {} down\n", end.device))?;
        }
        Ok(())
    }

    /// Plugs it in again.
    pub fn plug(&self) -> Result<()> {
        self.configure()
    }

    /// Name of the device at the given host, which must be one of the two.
    pub fn device(&self, host: &Host) -> Result<&str> {
        [&self.a, &self.b]
            .into_iter()
            .find(|end| end.host.namespace_inode() == host.namespace_inode())
            .map(|end| end.device.as_str())
            .with_context(|| format!("{} is not an end of this link", host.name()))
    }

    /// The end at which packets of the direction arrive.
    fn arriving(&self, direction: Direction) -> &End {
        match direction {
            Direction::AToB => &self.b,
            Direction::BToA => &self.a,
        }
    }

    fn configure(&self) -> Result<()> {
        self.a.set_up()?;
        self.b.set_up()?;
        // Routes need both ends up.
        self.a.set_routes(&self.b.host)?;
        self.b.set_routes(&self.a.host)
    }
}

// === impl End ===

impl End {
    fn new(host: &Host, peer: &Host) -> Self {
        Self { host: host.clone(), device: host.next_device(peer) }
    }

    fn set_up(&self) -> Result<()> {
        let device = &self.device;
        let mut orders = String::new();
        for address in addresses(&self.host) {
            let options = if address.is_ipv6() { "nodad noprefixroute" } else { "noprefixroute" };
            let _ = writeln!(orders, "addr replace {} dev {device} {options}", host_prefix(address));
        }
        let _ = writeln!(orders, "link set dev {device} up");
        self.ip(&orders)
    }

    fn set_routes(&self, peer: &Host) -> Result<()> {
        let mut orders = String::new();
        for to in addresses(peer) {
            // Without a source address of its own family the host could not use the route.
            if let Some(from) = addresses(&self.host).find(|from| from.is_ipv4() == to.is_ipv4()) {
                let _ = writeln!(orders, "route replace {} dev {} src {from}", host_prefix(to), self.device);
            }
        }
        self.ip(&orders)
    }

    /// Replaces the rule that decides about packets that arrive here.
    fn filter(&self, rule: &str) -> Result<()> {
        let device = &self.device;
        // One transaction. Naming the table first makes the deletion succeed when there is none.
        let table = format!("netdev {device}");
        let mut orders = format!("table {table}\ndelete table {table}\n");
        if !rule.is_empty() {
            let hook = format!("type filter hook ingress device \"{device}\" priority -500; policy accept;");
            let _ = writeln!(orders, "table {table} {{\nchain arriving {{\n{hook}\n{rule}\n}}\n}}");
        }
        self.host.enter(move || command::run("nft", &["-f", "-"], &orders))??;
        Ok(())
    }

    fn ip(&self, orders: &str) -> Result<()> {
        let orders = orders.to_owned();
        self.host.enter(move || command::run("ip", &["-batch", "-"], &orders))??;
        Ok(())
    }
}

// === impl LinkProcess ===

impl LinkProcess {
    fn order(&mut self, order: ShapeOrder) -> Result<()> {
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).with_context(|| self.failed())?;
        self.answer()
    }

    /// Waits for the line with which the program confirms what it has done.
    fn answer(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == "ok", "{}: {line:?}", self.failed());
        Ok(())
    }

    fn failed(&self) -> String {
        format!("the link process does not answer; it printed: {}", self.process.output())
    }
}

fn addresses(host: &Host) -> impl Iterator<Item = IpAddr> {
    let v4 = host.v4_addresses().iter().map(|&address| address.into());
    v4.chain(host.v6_addresses().iter().map(|&address| address.into()))
}

fn host_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn file_name(path: &std::path::Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a namespace without a name")
}
