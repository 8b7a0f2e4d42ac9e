//! The Pods' way out: a Pod, a node, a host of its own and a machine beside that, each a network namespace.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use maille_net::link::{self, Attachment, Attachment6};
use maille_net::{NetNs, egress, guard};
use maille_standalone::address::{
    API_PORT, DNS_PORT, EGRESS_PORT, EGRESS_USER, NODE_ADDRESS, NODE_ADDRESS_V6, POD_NETWORK, POD_NETWORK_V6,
    is_dual_stack, own_networks, pod_v6,
};

fn main() -> ExitCode {
    if let Some(code) = common::roles::play() {
        return code;
    }
    common::run(&[
        ("a_pod_reaches_what_the_host_reaches_but_nothing_else", reaches),
        ("a_pod_reaches_no_address_of_the_host_itself", never_itself),
        ("over_ipv6_it_is_the_same", same_in_v6),
        ("the_process_has_no_privileges_and_sees_the_pods_address", unprivileged),
    ])
}

const WAIT: Duration = Duration::from_secs(10);
/// A machine beside the host under test, and addresses of the host itself (TEST-NET-2, RFC 5737).
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const HOST: [Ipv4Addr; 3] = [
    Ipv4Addr::new(198, 51, 100, 1),
    // The kernel calls it secondary.
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(203, 0, 113, 7),
];

/// A Pod at its node, the host's namespace with the process in it, and another machine's.
struct Lab {
    node: NetNs,
    pod: Attachment,
    host: NetNs,
    far: NetNs,
    process: Child,
}

impl Lab {
    fn new(name: &str) -> Self {
        let id = format!("maille-out{}-{name}", std::process::id());
        let host = NetNs::create(format!("{id}-host")).unwrap();
        ip(&host, "link set lo up");
        let far = NetNs::create(format!("{id}-far")).unwrap();
        ip(&host, &format!("link add far type veth peer name eth0 netns {}", far.name()));
        ip(&far, &format!("addr add {FAR}/24 dev eth0"));
        // The last stands for a metadata service within reach.
        let [first, second, third] = HOST;
        for address in [format!("{first}/24"), format!("{second}/24"), "169.254.169.254/32".to_owned()] {
            ip(&host, &format!("addr add {address} dev far"));
        }
        ip(&host, &format!("addr add {third}/32 dev lo"));
        ip(&far, "link set eth0 up");
        ip(&host, "link set far up");
        let node = NetNs::create(format!("{id}-node")).unwrap();
        let mut addresses = vec![IpNet::new_assert(NODE_ADDRESS.into(), POD_NETWORK.prefix_len())];
        if is_dual_stack() {
            addresses.push(IpNet::new_assert(NODE_ADDRESS_V6.into(), POD_NETWORK_V6.prefix_len()));
            ip(&far, &format!("addr add {FAR6}/64 dev eth0 nodad"));
            ip(&host, &format!("addr add {HOST6}/64 dev far nodad"));
        }
        link::create_bridge(&node, NODE_ADDRESS, &addresses).unwrap();
        guard::install(&node, NODE_ADDRESS, &[API_PORT, DNS_PORT], &[DNS_PORT]).unwrap();
        egress::install(&node, &own_networks(), Some(EGRESS_PORT)).unwrap();
        let pod = Attachment {
            pod: NetNs::create(format!("{id}-pod")).unwrap(),
            address: Ipv4Addr::new(10, 244, 1, 2),
            prefix: POD_NETWORK.prefix_len(),
            gateway: NODE_ADDRESS,
            v6: is_dual_stack().then(|| Attachment6 {
                address: pod_v6(Ipv4Addr::new(10, 244, 1, 2)),
                prefix: POD_NETWORK_V6.prefix_len(),
                gateway: NODE_ADDRESS_V6,
                routes: vec!["::/0".parse().unwrap()],
            }),
        };
        guard::allow(&node, &pod).unwrap();
        link::attach(&node, &pod).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", host.name()])
            .arg(std::env::current_exe().unwrap())
            .args(["egress", "--node-namespace", node.name()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let lab = Self { node, pod, host, far, process };
        let deadline = Instant::now() + WAIT;
        while lab.connect(FAR, 1).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            assert!(Instant::now() < deadline, "the process does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        lab
    }

    fn connect(&self, address: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from((address.into(), port));
        let stream = self.pod.pod.run(|| TcpStream::connect_timeout(&to, WAIT)).unwrap()?;
        stream.set_read_timeout(Some(WAIT))?;
        Ok(stream)
    }

    /// What the Pod gets to read from there after it has said `hello` and closed its half.
    fn fetch(&self, address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
        let mut stream = self.connect(address, port)?;
        stream.write_all(b"hello")?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Answers each connection, once its client has said all it has to say, with that twice.
    fn echo(at: &NetNs, address: impl Into<IpAddr>, port: u16) {
        let address = address.into();
        let listener = at.run(|| TcpListener::bind((address, port)).unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut text = String::new();
                if stream.read_to_string(&mut text).is_ok() {
                    let _ = stream.write_all(text.repeat(2).as_bytes());
                }
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for ns in [&self.pod.pod, &self.node, &self.host, &self.far] {
            ns.delete().unwrap();
        }
    }
}

fn ip(ns: &NetNs, arguments: &str) {
    let status = Command::new("ip").args(["-n", ns.name()]).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{arguments}");
}

fn reaches() {
    let lab = Lab::new("a");
    Lab::echo(&lab.far, FAR, 80);
    assert_eq!(lab.fetch(FAR, 80).unwrap(), "hellohello", "with its half closed before the answer");

    // There are servers, and no Pod gets to them.
    for (address, port) in
        [(Ipv4Addr::LOCALHOST, 81), (Ipv4Addr::new(169, 254, 169, 254), 80), (Ipv4Addr::LOCALHOST, API_PORT)]
    {
        Lab::echo(&lab.host, address, port);
        let seen = lab.fetch(address, port).unwrap_err();
        assert_eq!(seen.kind(), ErrorKind::ConnectionRefused, "{address}:{port}");
    }
    // Not directly, and none of the node's other ports by way of the redirection.
    assert_eq!(lab.connect(NODE_ADDRESS, EGRESS_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let api = lab.node.run(|| TcpListener::bind((NODE_ADDRESS, API_PORT)).unwrap()).unwrap();
    api.set_nonblocking(true).unwrap();
    lab.fetch(FAR, API_PORT).expect_err("nobody listens there");
    api.accept().expect_err("and the API has not been asked");
    // A Pod's mistake about the mesh's networks stays inside.
    lab.connect(Ipv4Addr::new(10, 244, 200, 200), 80).expect_err("no such Pod");
}

fn never_itself() {
    let lab = Lab::new("c");
    // A firewall or a service that trusts the machine itself would trust its Pods.
    let server = lab.host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    server.set_nonblocking(true).unwrap();
    for address in HOST {
        lab.fetch(address, 80).expect_err("reset");
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{address}");
    }
    // Addresses come and go.
    Lab::echo(&lab.far, FAR, 80);
    lab.fetch(FAR, 80).unwrap();
    ip(&lab.host, &format!("addr add {FAR}/32 dev lo"));
    lab.fetch(FAR, 80).expect_err("now the host's own");
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

fn same_in_v6() {
    if !is_dual_stack() {
        eprintln!("SKIPPED (needs IPv6 in the kernel)");
        return;
    }
    let lab = Lab::new("d");
    Lab::echo(&lab.far, FAR6, 80);
    assert_eq!(lab.fetch(FAR6, 80).unwrap(), "hellohello");
    let server = lab.host.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    server.set_nonblocking(true).unwrap();
    for never in [HOST6, Ipv6Addr::LOCALHOST, "::ffff:198.51.100.1".parse().unwrap()] {
        lab.fetch(never, 80).expect_err("the host's own");
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{never}");
    }
    lab.connect(NODE_ADDRESS_V6, EGRESS_PORT).expect_err("only by redirection");
}

fn unprivileged() {
    let lab = Lab::new("b");
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.process.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![EGRESS_USER.to_string(); 4]);
    assert_eq!(field("Gid:"), vec![EGRESS_USER.to_string(); 4]);
    assert!(field("Groups:").is_empty(), "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);

    // A Pod that pretends to be another gets nowhere.
    Lab::echo(&lab.far, FAR, 80);
    lab.fetch(FAR, 80).unwrap();
    ip(&lab.pod.pod, "addr add 10.244.1.77/16 dev eth0");
    let spoofed = lab.pod.pod.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([10, 244, 1, 77], 0)).into()).unwrap();
        socket.connect_timeout(&SocketAddr::from((FAR, 80)).into(), Duration::from_secs(1))
    });
    assert_eq!(spoofed.unwrap().unwrap_err().kind(), ErrorKind::TimedOut, "the guard drops it");
}
