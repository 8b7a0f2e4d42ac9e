//! Redirection of a Pod's traffic into its sidecar (reference mtls 7.2).
//!
//! One table, `inet maille_intercept`, replaced whole in one transaction: applying it again, with the same or
//! with other arguments, leaves exactly the rules asked for. Rules stand in the reference's order and
//! carry its rule numbers, so that `nft list ruleset` can be read beside it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use maille_core::ports;

use crate::NetError;
use crate::command::run;
use crate::nft::{self, set};

mod dns;

/// `*` or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Include<T> {
    /// Everything.
    All,
    /// These only; an empty list is nothing.
    Only(Vec<T>),
}

/// What to redirect, as Istio's annotations say it (reference mtls 7.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interception {
    /// User of the sidecar, whose traffic is left alone.
    pub proxy_uid: u32,
    /// Group of the sidecar.
    pub proxy_gid: u32,
    /// Where inbound connections go.
    pub inbound_port: u16,
    /// Where outbound connections go.
    pub outbound_port: u16,
    /// `includeInboundPorts`.
    pub include_inbound_ports: Include<u16>,
    /// `excludeInboundPorts`, and always the sidecar's own 15090, 15021 and 15020.
    pub exclude_inbound_ports: Vec<u16>,
    /// `includeOutboundIPRanges`.
    pub include_outbound_ranges: Include<IpNet>,
    /// `excludeOutboundIPRanges`.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// `includeOutboundPorts`: redirected whatever their address.
    pub include_outbound_ports: Vec<u16>,
    /// `excludeOutboundPorts`.
    pub exclude_outbound_ports: Vec<u16>,
    /// `excludeInterfaces`.
    pub exclude_interfaces: Vec<String>,
    /// `reroute-virtual-interfaces`: what comes in there is treated as outbound.
    pub virtual_interfaces: Vec<String>,
    /// Resolvers, questions to which the sidecar answers; `None`: DNS is left alone. An empty list is filled from
    /// `resolv.conf`.
    pub dns: Option<Include<IpAddr>>,
}

impl Default for Interception {
    fn default() -> Self {
        Self {
            proxy_uid: ports::PROXY_UID,
            proxy_gid: ports::PROXY_UID,
            inbound_port: ports::INBOUND,
            outbound_port: ports::OUTBOUND,
            include_inbound_ports: Include::All,
            exclude_inbound_ports: Vec::new(),
            include_outbound_ranges: Include::All,
            exclude_outbound_ranges: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            dns: None,
        }
    }
}

impl Interception {
    /// Reads the arguments of the injected init container: `istio-iptables`' names, short or long,
    /// as `-x value`, `--long value` or `--long=value`.
    pub fn parse<S: AsRef<str>>(args: &[S]) -> Result<Self, NetError> {
        let mut this = Self::default();
        let mut rest = args.iter().map(AsRef::as_ref);
        while let Some(arg) = rest.next() {
            let (flag, inline) = match arg.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
                _ => (arg, None),
            };
            if this.switch(flag, inline)? {
                continue;
            }
            let value = match inline.or_else(|| rest.next()) {
                Some(value) => value,
                None => return Err(NetError::Invalid(format!("intercept: {flag} needs a value"))),
            };
            this.set(flag, value)?;
        }
        Ok(this)
    }

    /// Takes an argument that needs no value; whether it was one.
    fn switch(&mut self, flag: &str, value: Option<&str>) -> Result<bool, NetError> {
        let on = match value {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) if !matches!(flag, "--redirect-dns" | "--capture-all-dns") => return Ok(false),
            Some(other) => {
                return Err(NetError::Invalid(format!(
                    "intercept: {flag}: {other:?} is neither true nor false"
                )));
            }
        };
        match flag {
            "--redirect-dns" if !on => self.dns = None,
            "--redirect-dns" => {
                self.dns.get_or_insert(Include::Only(Vec::new()));
            }
            "--capture-all-dns" if on => self.dns = Some(Include::All),
            "--capture-all-dns" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<(), NetError> {
        match flag {
            "-p" | "--envoy-port" => self.outbound_port = one(flag, value)?,
            "-z" | "--inbound-capture-port" => self.inbound_port = one(flag, value)?,
            "-u" | "--proxy-uid" => self.proxy_uid = one(flag, value)?,
            "-g" | "--proxy-gid" => self.proxy_gid = one(flag, value)?,
            "-b" | "--istio-inbound-ports" => self.include_inbound_ports = include(flag, value)?,
            "-d" | "--istio-local-exclude-ports" => self.exclude_inbound_ports = many(flag, value)?,
            "-i" | "--istio-service-cidr" => self.include_outbound_ranges = include_ranges(flag, value)?,
            "-x" | "--istio-service-exclude-cidr" => self.exclude_outbound_ranges = ranges(flag, value)?,
            "-q" | "--istio-outbound-ports" => self.include_outbound_ports = many(flag, value)?,
            "-o" | "--istio-local-outbound-ports-exclude" => {
                self.exclude_outbound_ports = many(flag, value)?;
            }
            "-c" | "--istio-exclude-interfaces" => self.exclude_interfaces = interfaces(flag, value)?,
            "-k" | "--kube-virt-interfaces" => self.virtual_interfaces = interfaces(flag, value)?,
            "-m" | "--istio-inbound-interception-mode" if value == "REDIRECT" => {}
            "-m" | "--istio-inbound-interception-mode" => {
                return Err(NetError::Invalid(format!(
                    "intercept: {flag} {value:?} is not supported, only REDIRECT; for NONE leave the init container out"
                )));
            }
            _ => return Err(NetError::Invalid(format!("intercept: unknown argument {flag:?}"))),
        }
        Ok(())
    }

    /// The transaction that puts exactly this in force.
    pub fn render(&self) -> String {
        let mut text = String::new();
        self.render_dns_zone(&mut text);
        self.render_inbound(&mut text);
        self.render_outbound(&mut text);
        // Only the sidecar and root talk to its admin port; the application shares the loopback with it.
        let _ = write!(
            text,
            "  chain admin {{\n    type filter hook output priority 0; policy accept;\n    \
             oifname \"lo\" tcp dport {} meta skuid != {} reject with tcp reset\n  }}\n",
            ports::ADMIN,
            set([0, self.proxy_uid]),
        );
        nft::replace("inet", "maille_intercept", &text)
    }

    fn render_inbound(&self, text: &mut String) {
        let mut excluded = self.exclude_inbound_ports.clone();
        excluded.extend([ports::METRICS, ports::READINESS, ports::STATUS]);
        excluded.sort_unstable();
        excluded.dedup();
        text.push_str("  chain prerouting {\n    type nat hook prerouting priority -100; policy accept;\n");
        for interface in &self.virtual_interfaces {
            let _ = writeln!(
                text,
                "    iifname \"{interface}\" meta l4proto tcp redirect to :{}",
                self.outbound_port
            );
        }
        for interface in &self.exclude_interfaces {
            let _ = writeln!(text, "    iifname \"{interface}\" return");
        }
        let _ = writeln!(text, "    tcp dport {} return", ports::HBONE);
        let _ = writeln!(text, "    tcp dport {} return", set(&excluded));
        match &self.include_inbound_ports {
            Include::All => {
                let _ = writeln!(text, "    meta l4proto tcp redirect to :{}", self.inbound_port);
            }
            Include::Only(list) if list.is_empty() => {}
            Include::Only(list) => {
                let _ = writeln!(text, "    tcp dport {} redirect to :{}", set(list), self.inbound_port);
            }
        }
        text.push_str("  }\n");
    }

    fn render_outbound(&self, text: &mut String) {
        let (uid, gid) = (self.proxy_uid, self.proxy_gid);
        let (inbound, outbound) = (self.inbound_port, self.outbound_port);
        let (not_own, not_local) = match self.dns {
            None => (format!("!= {}", ports::HBONE), ""),
            // A resolver on the loopback is one of those to capture.
            Some(_) => (format!("!= {}", set([53, ports::HBONE])), "th dport != 53 "),
        };
        text.push_str("  chain output {\n    type nat hook output priority -100; policy accept;\n");
        let mut rule = |number: &str, rule: &str| {
            let _ = writeln!(text, "    {rule} comment \"{number}\"");
        };
        for interface in &self.exclude_interfaces {
            rule("0", &format!("oifname \"{interface}\" return"));
        }
        if !self.exclude_outbound_ports.is_empty() {
            let excluded = set(&self.exclude_outbound_ports);
            rule("1", &format!("meta l4proto {{ tcp, udp }} th dport {excluded} return"));
        }
        rule("2", &format!("oifname \"lo\" ip saddr {} return", ports::INBOUND_SOURCE_V4));
        rule("2", &format!("oifname \"lo\" ip6 saddr {} return", ports::INBOUND_SOURCE_V6));
        for (key, id) in [("skuid", uid), ("skgid", gid)] {
            let own = format!("meta {key} {id} tcp dport {not_own} redirect to :{inbound}");
            rule("3", &format!("oifname \"lo\" ip daddr != 127.0.0.1 {own}"));
            rule("3", &format!("oifname \"lo\" ip6 daddr != ::1 {own}"));
            rule("4", &format!("oifname \"lo\" meta {key} != {id} {not_local}return"));
            rule("5", &format!("meta {key} {id} return"));
        }
        for to_proxy in self.dns_rules() {
            rule("6", &to_proxy);
        }
        rule("7", "ip daddr 127.0.0.1 return");
        rule("7", "ip6 daddr ::1 return");
        for range in &self.exclude_outbound_ranges {
            rule("8", &format!("{} daddr {range} return", family(range)));
        }
        if !self.include_outbound_ports.is_empty() {
            let included = set(&self.include_outbound_ports);
            rule("9", &format!("tcp dport {included} redirect to :{outbound}"));
        }
        match &self.include_outbound_ranges {
            Include::All => rule("10", &format!("meta l4proto tcp redirect to :{outbound}")),
            Include::Only(list) => {
                for range in list {
                    let to =
                        format!("{} daddr {range} meta l4proto tcp redirect to :{outbound}", family(range));
                    rule("10", &to);
                }
            }
        }
        text.push_str("  }\n");
    }
}

/// Reads the arguments and puts the rules in force in the calling process's namespace.
pub fn apply<S: AsRef<str>>(args: &[S]) -> Result<(), NetError> {
    let mut wanted = Interception::parse(args)?;
    wanted.complete_dns(|name| std::env::var(name).ok(), dns::resolv_conf)?;
    nft::apply(&wanted.render())?;
    allow_inbound_source()
}

/// Gives the loopback the address from which the sidecar delivers over IPv6; that of IPv4 is there by nature. As
/// istio-iptables does.
fn allow_inbound_source() -> Result<(), NetError> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    if disabled.is_ok_and(|text| text.trim() == "0") {
        run(
            "ip",
            &["-6", "address", "replace", &format!("{}/128", ports::INBOUND_SOURCE_V6), "dev", "lo"],
            None,
        )?;
    }
    Ok(())
}

/// Takes all redirection away.
pub fn remove() -> Result<(), NetError> {
    nft::apply("table inet maille_intercept {}\ndelete table inet maille_intercept\n")
}

fn family(range: &IpNet) -> &'static str {
    match range {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn one<T: FromStr>(flag: &str, value: &str) -> Result<T, NetError> {
    value
        .trim()
        .parse()
        .map_err(|_| NetError::Invalid(format!("intercept: {flag}: {value:?} is not a number in range")))
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn many<T: FromStr>(flag: &str, value: &str) -> Result<Vec<T>, NetError> {
    items(value).map(|item| one(flag, item)).collect()
}

fn include<T: FromStr>(flag: &str, value: &str) -> Result<Include<T>, NetError> {
    if value.trim() == "*" { Ok(Include::All) } else { Ok(Include::Only(many(flag, value)?)) }
}

fn include_ranges(flag: &str, value: &str) -> Result<Include<IpNet>, NetError> {
    if value.trim() == "*" { Ok(Include::All) } else { Ok(Include::Only(ranges(flag, value)?)) }
}

/// Address ranges; an address alone is a range of one.
fn ranges(flag: &str, value: &str) -> Result<Vec<IpNet>, NetError> {
    items(value)
        .map(|item| {
            item.parse::<IpNet>()
                .map(|range| range.trunc())
                .or_else(|_| item.parse::<std::net::IpAddr>().map(IpNet::from))
                .map_err(|_| {
                    NetError::Invalid(format!("intercept: {flag}: {item:?} is not an address range"))
                })
        })
        .collect()
}

/// Interface names go into rule text, so only what the kernel allows and nft reads as one word.
fn interfaces(flag: &str, value: &str) -> Result<Vec<String>, NetError> {
    items(value)
        .map(|name| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
            if name.len() <= 15 && name.chars().all(plain) {
                Ok(name.to_owned())
            } else {
                Err(NetError::Invalid(format!("intercept: {flag}: {name:?} is not an interface name")))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_arguments_are_read_in_their_short_and_long_forms() {
        let short = Interception::parse(&[
            "-p",
            "15001",
            "-z",
            "15006",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "10.1.2.3/8",
            "-b",
            "*",
            "-d",
            "15090,15021,15020",
        ])
        .unwrap();
        let long = Interception::parse(&[
            "--istio-service-cidr=*",
            "--istio-service-exclude-cidr=10.0.0.0/8",
            "--istio-local-exclude-ports",
            "15090,15021,15020",
        ])
        .unwrap();
        assert_eq!(short, long);
        assert_eq!(short.exclude_outbound_ranges, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        for (args, expected) in [
            (vec!["-b", "http"], "-b"),
            (vec!["-o", "70000"], "70000"),
            (vec!["-x", "10.0.0.0/40"], "not an address range"),
            (vec!["-m", "TPROXY"], "TPROXY"),
            (vec!["-c", "eth0\"; drop"], "not an interface name"),
            (vec!["--unheard-of", "1"], "unknown argument"),
            (vec!["-p"], "needs a value"),
        ] {
            let error = Interception::parse(&args).unwrap_err().to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn own_ports_of_the_sidecar_are_never_captured_inbound() {
        let text = Interception { exclude_inbound_ports: vec![9000], ..Default::default() }.render();
        assert!(text.contains("tcp dport { 9000, 15020, 15021, 15090 } return"), "{text}");
    }

    #[test]
    fn an_empty_list_captures_nothing() {
        let text = Interception {
            include_inbound_ports: Include::Only(vec![]),
            include_outbound_ranges: Include::Only(vec![]),
            ..Default::default()
        }
        .render();
        assert!(!text.contains("redirect to :15001"), "{text}");
        assert_eq!(text.matches("redirect to :15006").count(), 4, "rule 3 only: {text}");
    }
}
