//! `resolv.conf` as the application's resolver reads it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The resolver library asks no more (resolv.conf(5)).
const MOST_SERVERS: usize = 3;

const PORT: u16 = 53;

/// What of it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// To be asked in this order.
    pub(super) servers: Vec<SocketAddr>,
    /// Domains that the application's resolver tries, in lower case, without dots around.
    pub(super) search: Vec<String>,
}

impl ResolvConf {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        std::fs::read_to_string(path).map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(server);
                    this.servers.extend(address.filter(|_| this.servers.len() < MOST_SERVERS));
                }
                // The last one counts.
                Some("search" | "domain") => {
                    let clean = |word: &str| word.trim_matches('.').to_ascii_lowercase();
                    this.search = words.map(clean).filter(|domain| !domain.is_empty()).collect();
                }
                _ => {}
            }
        }
        this
    }
}

/// An address, which tests may give a port.
fn server(word: &str) -> Option<SocketAddr> {
    let plain = word.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
    plain.or_else(|_| word.parse::<SocketAddr>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domains_are_read_and_the_rest_is_not() {
        let text = "# comment\nsearch old.example\nsearch Shop.svc.cluster.local svc.cluster.local. .\n\
                    nameserver 10.96.0.10\nnameserver fd00::a\nnameserver nonsense\nnameserver\noptions ndots:5\n\
                    nameserver 1.1.1.1\nnameserver 9.9.9.9\n";
        let servers = ["10.96.0.10:53", "[fd00::a]:53", "1.1.1.1:53"].map(|s| s.parse().expect("valid"));
        let search = ["shop.svc.cluster.local", "svc.cluster.local"].map(str::to_owned);
        assert_eq!(ResolvConf::parse(text), ResolvConf { servers: servers.into(), search: search.into() });
    }
}
