//! Capture of the application's DNS questions (reference mtls 7.2, rule 6; SE-16).

use std::net::IpAddr;

use maille_core::ports;

use super::{Include, Interception};
use crate::NetError;
use crate::nft::set;

/// Where the resolvers of a container are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Named so by Istio's injection, from `proxyMetadata`; its init container reads it as the sidecar does.
const ENVIRONMENT: &str = "ISTIO_META_DNS_CAPTURE";

impl Interception {
    /// What the environment of the init container and its `resolv.conf` add to the arguments.
    pub(super) fn complete_dns(
        &mut self,
        environment: impl Fn(&str) -> Option<String>,
        resolv_conf: impl FnOnce() -> std::io::Result<String>,
    ) -> Result<(), NetError> {
        if self.dns.is_none() && environment(ENVIRONMENT).as_deref() == Some("true") {
            self.dns = Some(Include::Only(Vec::new()));
        }
        if let Some(Include::Only(servers)) = &mut self.dns
            && servers.is_empty()
        {
            *servers = nameservers(&resolv_conf().map_err(NetError::io(format!("read {RESOLV_CONF}")))?);
            if servers.is_empty() {
                tracing::warn!("{RESOLV_CONF} names no resolver: no DNS is captured");
            }
        }
        Ok(())
    }

    /// The zone of connection tracking in which captured questions are.
    ///
    /// The sidecar may ask the resolver from a port from which the application asked it a moment ago: with both
    /// in one zone the kernel would take the one for the other, and send the sidecar's question back to the sidecar. Only
    /// the first direction has a zone: answers have other ends anyway.
    pub(super) fn render_dns_zone(&self, text: &mut String) {
        let Some(wanted) = &self.dns else { return };
        let own = format!("meta skuid != {} meta skgid != {}", self.proxy_uid, self.proxy_gid);
        text.push_str("  chain zones {\n    type filter hook output priority -300; policy accept;\n");
        for to in questions(wanted) {
            text.push_str(&format!("    {own} {to} ct original zone set 1\n"));
        }
        text.push_str("  }\n");
    }

    /// Rule 6.
    pub(super) fn dns_rules(&self) -> Vec<String> {
        let to_proxy = |to: String| format!("{to} redirect to :{}", ports::DNS);
        self.dns.iter().flat_map(questions).map(to_proxy).collect()
    }
}

/// What makes a packet a question to capture.
fn questions(wanted: &Include<IpAddr>) -> Vec<String> {
    const PORT: &str = "meta l4proto { tcp, udp } th dport 53";
    match wanted {
        Include::All => vec![PORT.to_owned()],
        Include::Only(servers) => [("ip", true), ("ip6", false)]
            .into_iter()
            .filter_map(|(family, v4)| {
                let of_family: Vec<&IpAddr> = servers.iter().filter(|ip| ip.is_ipv4() == v4).collect();
                (!of_family.is_empty()).then(|| format!("{family} daddr {} {PORT}", set(of_family)))
            })
            .collect(),
    }
}

/// The resolvers that a `resolv.conf` names. One with an interface (`fe80::1%eth0`) is no address that a rule could name.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .filter_map(|address| address.parse().ok())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

pub(super) fn resolv_conf() -> std::io::Result<String> {
    std::fs::read_to_string(RESOLV_CONF)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLV: &str = "search a.b\nnameserver 10.96.0.10\nnameserver fd00::a # second\nnameserver fe80::1%eth0\n\
                          nameserver 10.96.0.10\noptions ndots:5\n";

    fn completed(args: &[&str], environment: Option<&str>) -> Interception {
        let mut this = Interception::parse(args).unwrap();
        let environment = |name: &str| (name == ENVIRONMENT).then_some(environment?.to_owned());
        this.complete_dns(environment, || Ok(RESOLV.to_owned())).unwrap();
        this
    }

    #[test]
    fn dns_is_left_alone_unless_asked_for() {
        for this in
            [completed(&[], None), completed(&[], Some("false")), completed(&["--redirect-dns=false"], None)]
        {
            let text = this.render();
            assert!(!text.contains("15053") && !text.contains("zone"), "{text}");
            assert!(text.contains("oifname \"lo\" meta skuid != 1337 return"), "{text}");
        }
    }

    #[test]
    fn questions_to_the_containers_resolvers_are_captured_by_argument_and_by_environment() {
        let (by_argument, by_environment) =
            (completed(&["--redirect-dns", "-p", "15001"], None), completed(&[], Some("true")));
        assert_eq!(by_argument, by_environment);
        let text = by_argument.render();
        let port = "meta l4proto { tcp, udp } th dport 53";
        for rule in [
            format!("ip daddr {{ 10.96.0.10 }} {port} redirect to :15053 comment \"6\""),
            format!("ip6 daddr {{ fd00::a }} {port} redirect to :15053 comment \"6\""),
            format!(
                "meta skuid != 1337 meta skgid != 1337 ip daddr {{ 10.96.0.10 }} {port} ct original zone set 1"
            ),
            // A resolver on the loopback is captured too, and the sidecar's own questions are not the application's.
            "oifname \"lo\" meta skuid != 1337 th dport != 53 return".to_owned(),
            "ip daddr != 127.0.0.1 meta skuid 1337 tcp dport != { 53, 15008 } redirect to :15006".to_owned(),
        ] {
            assert!(text.contains(&rule), "{rule}\n{text}");
        }
        let at = |rule: &str| text.find(rule).unwrap_or_else(|| panic!("{rule}\n{text}"));
        assert!(at("comment \"5\"") < at("comment \"6\"") && at("comment \"6\"") < at("comment \"7\""));
    }

    #[test]
    fn all_questions_are_captured_when_asked_for() {
        let text = completed(&["--redirect-dns", "--capture-all-dns"], None).render();
        assert!(text.contains("    meta l4proto { tcp, udp } th dport 53 redirect to :15053"), "{text}");
    }
}
