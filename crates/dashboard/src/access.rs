//! Who may look: whoever came with the key, at an address that no other site's name leads to.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, header};

/// Shortest key taken: 128 bits as hexadecimal digits.
const SHORTEST_KEY: usize = 32;
const LONGEST_KEY: usize = 256;

/// The key that opens the page. It is in the printed address, and opens the page for as long as the mesh is there.
#[derive(Clone)]
pub struct AccessKey(String);

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessKey(…)")
    }
}

impl AccessKey {
    /// Takes a key: 32 to 256 letters and digits of ASCII, which nobody can guess.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (SHORTEST_KEY..=LONGEST_KEY).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| Self(text.to_owned()))
    }

    /// One that nobody knows yet.
    fn random() -> Self {
        Self(rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The address that lets a browser in.
    pub fn url(&self, address: SocketAddr) -> String {
        format!("http://{address}/?key={}", self.0)
    }

    /// Compares in a time that does not tell how much of it is right.
    fn is(&self, offered: &str) -> bool {
        let (own, offered) = (self.0.as_bytes(), offered.as_bytes());
        own.len() == offered.len() && own.iter().zip(offered).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }
}

/// How a request stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It may see the page.
    Granted,
    /// It brings the key in its address: this cookie, then again without it.
    Exchange { cookie: String },
    /// It has no key, or a wrong one.
    NoKey,
    /// It is meant for another host: a name that somebody made lead here (DNS rebinding).
    ForeignHost,
}

/// Judges requests to one listener.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    key: AccessKey,
    /// What the cookie holds. Browsers send cookies to every port of this host, where others may listen: what they hear
    /// must not be the key, and ends with this process.
    pass: AccessKey,
    address: SocketAddr,
}

impl Gate {
    pub(crate) fn new(key: AccessKey, address: SocketAddr) -> Self {
        Self { key, pass: AccessKey::random(), address }
    }

    /// Cookies do not keep to a port, so this one has it in its name: dashboards beside each other do not close
    /// each other's door.
    fn cookie_name(&self) -> String {
        format!("maille-dashboard-{}", self.address.port())
    }

    pub(crate) fn judge(&self, headers: &HeaderMap, key_in_address: Option<&str>) -> Access {
        if !self.is_own_host(headers) {
            return Access::ForeignHost;
        }
        if let Some(offered) = key_in_address {
            return match self.key.is(offered) {
                true => Access::Exchange {
                    cookie: format!(
                        "{}={}; HttpOnly; SameSite=Strict; Path=/",
                        self.cookie_name(),
                        self.pass.0
                    ),
                },
                false => Access::NoKey,
            };
        }
        let name = self.cookie_name();
        let mut cookies = headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        match cookies.any(|(cookie, value)| cookie == name && self.pass.is(value)) {
            true => Access::Granted,
            false => Access::NoKey,
        }
    }

    /// Whether the one `Host` is this listener: `localhost` or an address, never a name that DNS could lead here, and
    /// with the port.
    fn is_own_host(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Ok(host) = host.to_str() else { return false };
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
            _ => (host, Some(80)),
        };
        if port != Some(self.address.port()) {
            return false;
        }
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        match literal.parse::<IpAddr>() {
            // On loopback alone, only loopback's addresses lead here.
            Ok(ip) => ip.is_loopback() || !self.address.ip().is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn gate(address: &str) -> Gate {
        Gate::new(AccessKey::parse(KEY).expect("a key"), address.parse().expect("an address"))
    }

    fn headers(list: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(name.clone(), value.parse().expect("a value"));
        }
        map
    }

    #[test]
    fn only_own_hosts_are_answered() {
        let with = |host: &str| {
            headers(&[(header::HOST, host), (header::COOKIE, &format!("maille-dashboard-8480={KEY}"))])
        };
        let gate = Gate { pass: AccessKey::parse(KEY).expect("a key"), ..gate("127.0.0.1:8480") };
        for host in ["127.0.0.1:8480", "localhost:8480", "LOCALHOST:8480", "[::1]:8480", "127.0.0.2:8480"] {
            assert_eq!(gate.judge(&with(host), None), Access::Granted, "{host}");
        }
        for host in [
            "evil.example:8480",
            "localhost",
            "localhost:80",
            "127.0.0.1",
            "localhost.evil.example:8480",
            "192.0.2.1:8480",
            "",
            "127.0.0.1:8480:8480",
            "[::1]",
            "localhost.:8480",
        ] {
            assert_eq!(gate.judge(&with(host), None), Access::ForeignHost, "{host}");
        }
        assert_eq!(gate.judge(&HeaderMap::new(), None), Access::ForeignHost);
        let twice = headers(&[(header::HOST, "localhost:8480"), (header::HOST, "localhost:8480")]);
        assert_eq!(gate.judge(&twice, None), Access::ForeignHost);
        // Asked to listen elsewhere, it answers to addresses, and still to no name.
        let open = Gate { pass: gate.pass.clone(), ..self::gate("0.0.0.0:8480") };
        assert_eq!(open.judge(&with("192.0.2.1:8480"), None), Access::Granted);
        assert_eq!(open.judge(&with("evil.example:8480"), None), Access::ForeignHost);
    }

    #[test]
    fn only_the_right_key_opens() {
        let gate = gate("127.0.0.1:8480");
        let host = (header::HOST, "localhost:8480");
        let judge = |cookie: &str| gate.judge(&headers(&[host.clone(), (header::COOKIE, cookie)]), None);
        let pass = &gate.pass.0;
        assert_eq!(judge(&format!("a=b; maille-dashboard-8480={pass}; c=d")), Access::Granted);
        assert_eq!(judge(&format!("maille-dashboard-8481={pass}")), Access::NoKey);
        assert_eq!(judge(&format!("maille-dashboard-8480={}", &pass[1..])), Access::NoKey);
        assert_eq!(
            judge(&format!("maille-dashboard-8480={KEY}")),
            Access::NoKey,
            "no cookie is made of the key"
        );
        assert_eq!(judge("maille-dashboard-8480="), Access::NoKey);
        let plain = headers(&[host]);
        assert_eq!(gate.judge(&plain, None), Access::NoKey);
        assert_eq!(gate.judge(&plain, Some("wrong")), Access::NoKey);
        let Access::Exchange { cookie } = gate.judge(&plain, Some(KEY)) else { panic!("let in") };
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
        assert!(!cookie.contains(KEY));
    }

    #[test]
    fn a_cookie_ends_with_its_process() {
        let (before, after) = (gate("127.0.0.1:8480"), gate("127.0.0.1:8480"));
        let host = (header::HOST, "localhost:8480");
        let plain = headers(std::slice::from_ref(&host));
        let Access::Exchange { cookie } = before.judge(&plain, Some(KEY)) else { panic!("let in") };
        let kept = cookie.split(';').next().expect("a cookie");
        let returning = headers(&[host, (header::COOKIE, kept)]);
        assert_eq!(before.judge(&returning, None), Access::Granted);
        assert_eq!(after.judge(&returning, None), Access::NoKey);
        assert!(
            matches!(after.judge(&returning, Some(KEY)), Access::Exchange { .. }),
            "the address still works"
        );
    }

    #[test]
    fn weak_keys_are_none() {
        assert!(AccessKey::parse("short").is_none());
        assert!(AccessKey::parse(&"a;".repeat(20)).is_none());
        assert!(!format!("{:?}", AccessKey::parse(KEY)).contains(KEY));
    }
}
