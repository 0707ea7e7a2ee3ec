//! The default gateways of this network namespace.
//!
//! With a bridge on the node, which is what many network plugins make, the kubelet's probes come from the bridge's own
//! address and not from one of the node's that Kubernetes tells. It is the pod's default gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Flag of a route that has a gateway (`RTF_GATEWAY`, linux/route.h).
const GATEWAY: u32 = 0x2;

/// Their addresses; none where there are none or the system does not tell.
#[must_use]
pub fn gateways() -> Vec<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = read("/proc/net/route");
    let v6 = read("/proc/net/ipv6_route");
    v4.lines().filter_map(ipv4).map(IpAddr::V4).chain(v6.lines().filter_map(ipv6).map(IpAddr::V6)).collect()
}

/// Interface, destination, gateway, flags, … in the host's byte order (`fib_route_seq_show`, net/ipv4/fib_trie.c).
fn ipv4(line: &str) -> Option<Ipv4Addr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (destination, gateway, flags) = (fields.next()?, fields.next()?, fields.next()?);
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let gateway = u32::from_str_radix(gateway, 16).ok()?;
    (destination == "00000000" && flags & GATEWAY != 0).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
}

/// Destination, its length, source, its length, gateway, metric, counts, flags, interface (`rt6_info_route`,
/// net/ipv6/route.c).
fn ipv6(line: &str) -> Option<Ipv6Addr> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, "00", _, _, gateway, _, _, _, flags, _] = fields[..] else { return None };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let gateway = u128::from_str_radix(gateway, 16).ok()?;
    (flags & GATEWAY != 0).then(|| Ipv6Addr::from(gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_default_routes_with_a_gateway_count() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        let default =
            format!("eth0\t00000000\t{:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0", u32::from_ne_bytes([10, 244, 77, 1]));
        let network = "eth0\t004DF40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        let device = "eth0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0";
        assert_eq!(ipv4(header), None);
        assert_eq!(ipv4(&default), Some(Ipv4Addr::new(10, 244, 77, 1)));
        assert_eq!(ipv4(network), None);
        assert_eq!(ipv4(device), None);
        let zero = "00000000000000000000000000000000";
        let route = |length, flags| {
            format!(
                "{zero} {length} {zero} 00 fd000000000000000000000000000001 00000400 00000001 00000000 {flags}     eth0"
            )
        };
        assert_eq!(ipv6(&route("00", "00000003")), Some("fd00::1".parse().unwrap()));
        assert_eq!(ipv6(&route("40", "00000003")), None);
        assert_eq!(ipv6(&route("00", "00000001")), None);
    }
}
