//! The network devices of this namespace that carry Ethernet frames (rtnetlink(7)).

use std::{collections::BTreeSet, io};

use crate::netlink::{NLM_F_DUMP, NLM_F_REQUEST, Request, attribute};

const RTM_GETLINK: u16 = 18;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// Bytes of `ifinfomsg`; the type stands in the third and fourth.
const MESSAGE: usize = 16;
const IFLA_IFNAME: u16 = 3;

/// Their names. Loopback is none of them: its frames have no senders.
pub(super) fn ethernet() -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let request = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP).with(&[0; MESSAGE]);
    request.list(libc::NETLINK_ROUTE, |body| {
        let kind = body.get(2..4).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
        if kind == Some(ETHERNET) {
            names.extend(name(body));
        }
    })?;
    Ok(names)
}

fn name(message: &[u8]) -> Option<String> {
    let name = attribute(message.get(MESSAGE..)?, IFLA_IFNAME)?.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}
