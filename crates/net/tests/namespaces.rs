//! Bridge, guard, Services and interception, with real packets between real namespaces.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use maille_net::intercept::{Include, Interception};
use maille_net::link::{self, Attachment, Attachment6};
use maille_net::original_dst::original_dst;
use maille_net::service::{self, Transport, VirtualPort};
use maille_net::{NetNs, egress, guard, intercept, nft};

fn main() -> ExitCode {
    common::run(&[
        ("pods_reach_each_other_and_only_open_ports_of_the_node", reach),
        ("a_pod_cannot_use_the_address_of_another", spoof),
        ("tcp_to_the_outside_reaches_only_the_listener_for_it", outside),
        ("special_addresses_and_a_closed_way_out_are_refused_at_once", outside_refused),
        ("a_virtual_address_leads_to_ready_endpoints_or_is_refused", services),
        ("applications_are_redirected_and_the_proxy_is_not", redirect),
        ("questions_to_resolvers_are_captured_and_the_proxys_own_are_not", dns),
        ("ipv6_has_the_same_roads_and_the_same_guards", ipv6),
        ("ipv6_is_redirected_translated_and_delivered_as_ipv4_is", redirect6),
        ("interception_is_idempotent", idempotent),
        ("only_the_proxy_and_root_reach_the_admin_port", admin),
        ("proxy_traffic_to_a_virtual_address_is_translated", proxy_to_vip),
    ])
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x14);

fn pod6(pod: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x102 + pod)
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const WAIT: Duration = Duration::from_secs(2);

struct Lab {
    node: NetNs,
    pods: Vec<Attachment>,
}

impl Lab {
    fn new(pods: u8) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let id = format!("maille-lab{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let node = NetNs::create(format!("{id}-node")).unwrap();
        let addresses = [format!("{GATEWAY}/16"), format!("{GATEWAY6}/64")].map(|a| a.parse().unwrap());
        link::create_bridge(&node, GATEWAY, &addresses[..if link::has_ipv6() { 2 } else { 1 }]).unwrap();
        guard::install(&node, GATEWAY, &[6443, 53], &[53]).unwrap();
        let pods = (0..pods)
            .map(|n| {
                let pod = NetNs::create(format!("{id}-{n}")).unwrap();
                let at = Attachment {
                    pod,
                    address: Ipv4Addr::new(10, 244, 1, n + 2),
                    prefix: 16,
                    gateway: GATEWAY,
                    v6: link::has_ipv6().then(|| Attachment6 {
                        address: pod6(n.into()),
                        prefix: 64,
                        gateway: GATEWAY6,
                        routes: vec!["::/0".parse().unwrap()],
                    }),
                };
                guard::allow(&node, &at).unwrap();
                link::attach(&node, &at).unwrap();
                at
            })
            .collect();
        Self { node, pods }
    }

    fn address(&self, pod: usize, port: u16) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.pods[pod].address, port))
    }

    fn listen(&self, pod: usize, port: u16) -> TcpListener {
        self.pods[pod].pod.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap()
    }

    fn connect(&self, pod: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.pods[pod].pod.run(|| TcpStream::connect_timeout(&to, WAIT)).unwrap()
    }

    /// A connection made by a process of that user, and what it read.
    fn fetch_as(&self, pod: usize, uid: u32, to: SocketAddr) -> String {
        self.bash_as(
            pod,
            uid,
            &format!("exec 3<>/dev/tcp/{}/{} && timeout 2 head -c 5 <&3", to.ip(), to.port()),
        )
    }

    /// What a script of that user prints.
    fn bash_as(&self, pod: usize, uid: u32, script: &str) -> String {
        let output = self.pods[pod]
            .pod
            .run(|| {
                Command::new("setpriv")
                    .args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"])
                    .args(["bash", "-c", script])
                    .output()
                    .unwrap()
            })
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for at in &self.pods {
            at.pod.delete().unwrap();
        }
        self.node.delete().unwrap();
    }
}

/// Answers each connection with five letters, from a thread that ends with its listener's process.
fn serve(listener: TcpListener, answer: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(answer.as_bytes());
        }
    });
}

/// Answers with the port that the connection was meant for.
fn serve_original(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let original = original_dst(&stream).unwrap().expect("redirected");
            let _ = write!(stream, "{:05}", original.port());
        }
    });
}

fn reach() {
    let lab = Lab::new(2);
    let listener = lab.listen(1, 80);
    lab.connect(0, lab.address(1, 80)).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), lab.pods[0].address);
    assert_eq!(original_dst(&lab.connect(0, lab.address(1, 80)).unwrap()).unwrap(), None);

    let _api = lab.node.run(|| TcpListener::bind((GATEWAY, 6443)).unwrap()).unwrap();
    let _other = lab.node.run(|| TcpListener::bind((GATEWAY, 9999)).unwrap()).unwrap();
    lab.connect(0, SocketAddr::from((GATEWAY, 6443))).unwrap();
    let refused = lab.connect(0, SocketAddr::from((GATEWAY, 9999))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // And the node reaches Pods, as probes do.
    lab.node.run(|| TcpStream::connect_timeout(&lab.address(1, 80), WAIT)).unwrap().unwrap();
}

fn spoof() {
    let lab = Lab::new(2);
    let receiver = lab.pods[1].pod.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let send = |from: &str| {
        lab.pods[0].pod.run(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"hello", lab.address(1, 5000)).unwrap();
        })
    };
    let ip = |args: &[&str]| {
        let status = Command::new("ip").args(["-n", lab.pods[0].pod.name()]).args(args).status().unwrap();
        assert!(status.success(), "{args:?}");
    };
    let mut buffer = [0; 16];
    send(&lab.pods[0].address.to_string()).unwrap();
    assert_eq!(receiver.recv_from(&mut buffer).unwrap().1.ip(), lab.pods[0].address);

    ip(&["addr", "add", "10.244.1.77/16", "dev", "eth0"]);
    send("10.244.1.77").unwrap();
    receiver.recv_from(&mut buffer).expect_err("another IP address is dropped");

    ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    send(&lab.pods[0].address.to_string()).unwrap();
    receiver.recv_from(&mut buffer).expect_err("another hardware address is dropped");
}

const WAY_OUT: u16 = 6444;
/// TEST-NET-3 (RFC 5737): nowhere, and outside of the mesh.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

fn own_networks() -> Vec<ipnet::IpNet> {
    let all = ["10.244.0.0/16", "10.96.0.0/16", "fd00:10:244::/64", "fd00:10:96::/112"];
    all.iter().map(|net| net.parse().unwrap()).take(if link::has_ipv6() { 4 } else { 2 }).collect()
}

fn outside() {
    let lab = Lab::new(1);
    egress::install(&lab.node, &own_networks(), Some(WAY_OUT)).unwrap();
    let listener = lab.node.run(|| TcpListener::bind((GATEWAY, WAY_OUT)).unwrap()).unwrap();
    let _api = lab.node.run(|| TcpListener::bind((GATEWAY, 6443)).unwrap()).unwrap();
    for port in [443, 6443, 53, WAY_OUT] {
        let target = SocketAddr::from((OUTSIDE, port));
        let _client = lab.connect(0, target).unwrap();
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!(original_dst(&accepted).unwrap(), Some(target));
        assert_eq!(from.ip(), lab.pods[0].address, "the Pod's own address, which the guard proved");
    }
    let direct = lab.connect(0, SocketAddr::from((GATEWAY, WAY_OUT))).unwrap_err();
    assert_eq!(direct.kind(), std::io::ErrorKind::ConnectionRefused, "only by redirection");
    lab.connect(0, SocketAddr::from((GATEWAY, 6443))).expect("what the guard lets in is as before");
    lab.connect(0, SocketAddr::from((Ipv4Addr::new(10, 244, 9, 9), 80))).expect_err("an address of the mesh");
    listener.set_nonblocking(true).unwrap();
    listener.accept().expect_err("which is not redirected");
}

fn outside_refused() {
    let lab = Lab::new(1);
    let refused = |address: Ipv4Addr| {
        let error = lab.connect(0, SocketAddr::from((address, 80))).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    };
    egress::install(&lab.node, &own_networks(), Some(WAY_OUT)).unwrap();
    let listener = lab.node.run(|| TcpListener::bind((GATEWAY, WAY_OUT)).unwrap()).unwrap();
    refused(Ipv4Addr::new(169, 254, 169, 254));
    refused(Ipv4Addr::new(168, 63, 129, 16));
    listener.set_nonblocking(true).unwrap();
    listener.accept().expect_err("nothing of it is redirected");

    egress::install(&lab.node, &own_networks(), None).unwrap();
    refused(OUTSIDE);
    let udp = lab.pods[0].pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    udp.set_read_timeout(Some(WAIT)).unwrap();
    udp.connect((OUTSIDE, 123)).unwrap();
    udp.send(b"time?").unwrap();
    let error = udp.recv(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "UDP is refused, not swallowed");
}

fn virtual_port(endpoints: Vec<(IpAddr, u16)>) -> VirtualPort {
    VirtualPort {
        address: VIP.into(),
        transport: Transport::Tcp,
        port: 80,
        label: "default/web:http".into(),
        endpoints,
    }
}

fn services() {
    let lab = Lab::new(3);
    serve(lab.listen(1, 8080), "one11");
    serve(lab.listen(2, 8080), "two22");
    let client = &lab.pods[0].pod;
    let network = ["10.96.0.0/16".parse().unwrap()];
    let endpoints = vec![(lab.pods[1].address.into(), 8080), (lab.pods[2].address.into(), 8080)];
    service::apply(client, &network, &[virtual_port(endpoints)]).unwrap();
    let fetch = || {
        let mut stream = lab.connect(0, SocketAddr::from((VIP, 80)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    let answers: Vec<String> = (0..40).map(|_| fetch().unwrap()).collect();
    assert!(answers.iter().any(|a| a == "one11") && answers.iter().any(|a| a == "two22"), "{answers:?}");

    let open = lab.connect(0, SocketAddr::from((VIP, 80))).unwrap();
    service::apply(client, &network, &[virtual_port(vec![])]).unwrap();
    assert_eq!(fetch().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text.len(), 5, "connections already open go on");
    let rules = nft::list(client).unwrap();
    assert!(rules.contains("tcp reset"), "{rules}");
}

fn redirect() {
    let lab = Lab::new(2);
    let pod = &lab.pods[0].pod;
    pod.run(|| intercept::apply(&["-o", "7000", "-d", "7001"])).unwrap().unwrap();
    serve_original(lab.listen(0, 15001));
    serve_original(lab.listen(0, 15006));
    serve(lab.listen(0, 8080), "local");
    serve(lab.listen(0, 7001), "plain");
    serve(lab.listen(1, 80), "other");
    serve(lab.listen(1, 7000), "other");

    assert_eq!(lab.fetch_as(0, 1000, lab.address(1, 80)), "00080", "IC-1: the application goes to 15001");
    assert_eq!(lab.fetch_as(0, 1000, lab.address(1, 7000)), "other", "an excluded port does not");
    assert_eq!(lab.fetch_as(0, 1000, "127.0.0.1:8080".parse().unwrap()), "local", "IC-2");
    assert_eq!(lab.fetch_as(0, 1000, lab.address(0, 8080)), "local", "IC-3");
    assert_eq!(
        lab.fetch_as(0, 1337, lab.address(0, 8080)),
        "08080",
        "IC-4: the proxy to its own Pod goes to 15006"
    );
    assert_eq!(lab.fetch_as(0, 1337, lab.address(1, 80)), "other", "IC-5");
    assert_eq!(lab.fetch_as(1, 1000, lab.address(0, 8080)), "08080", "inbound goes to 15006");
    assert_eq!(lab.fetch_as(1, 1000, lab.address(0, 7001)), "plain", "IC-6: an excluded port does not");

    // IC-8: what the proxy delivers comes from 127.0.0.6 and is not captured again.
    let text = pod
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 6], 0)).into()).unwrap();
            socket.connect(&lab.address(0, 8080).into()).unwrap();
            let mut text = String::new();
            TcpStream::from(socket).read_to_string(&mut text).unwrap();
            text
        })
        .unwrap();
    assert_eq!(text, "local");
}

/// Answers each datagram with five letters.
fn serve_udp(socket: UdpSocket, answer: &'static str) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    });
}

fn dns() {
    let lab = Lab::new(3);
    let (pod, resolver) = (&lab.pods[0].pod, lab.pods[1].address);
    let resolvers = vec![resolver.into(), pod6(1).into()];
    let wanted = Interception { dns: Some(Include::Only(resolvers)), ..Default::default() };
    nft::apply_in(pod, &wanted.render()).unwrap();
    serve_udp(pod.run(|| UdpSocket::bind("127.0.0.1:15053").unwrap()).unwrap(), "proxy");
    serve(pod.run(|| TcpListener::bind("127.0.0.1:15053").unwrap()).unwrap(), "proxy");
    for other in [1, 2] {
        let ns = &lab.pods[other].pod;
        serve_udp(ns.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap(), "other");
        serve(lab.listen(other, 53), "other");
    }
    // One port for everybody, so that the sidecar's question looks like the application's that came before.
    pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").unwrap()).unwrap();
    let ask = |uid: u32, to: Ipv4Addr| {
        let script = format!("exec 3<>/dev/udp/{to}/53 && echo >&3 && timeout 2 head -c 5 <&3");
        lab.bash_as(0, uid, &script)
    };
    for _ in 0..2 {
        assert_eq!(ask(1000, resolver), "proxy", "the application's, and the answer comes back to it");
        assert_eq!(ask(1337, resolver), "other", "the sidecar's own goes to the resolver");
    }
    assert_eq!(ask(1000, lab.pods[2].address), "other", "a server that resolv.conf does not name");
    pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 50000").unwrap()).unwrap();
    assert_eq!(lab.fetch_as(0, 1000, lab.address(1, 53)), "proxy", "over TCP as well");
    assert_eq!(lab.fetch_as(0, 1337, lab.address(1, 53)), "other");
    if skipped_without_ipv6() {
        return;
    }
    serve_udp(pod.run(|| UdpSocket::bind("[::1]:15053").unwrap()).unwrap(), "proxy");
    let bind = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 53)).into()).unwrap();
        UdpSocket::from(socket)
    };
    serve_udp(lab.pods[1].pod.run(bind).unwrap(), "other");
    let script = format!("exec 3<>/dev/udp/{}/53 && echo >&3 && timeout 2 head -c 5 <&3", pod6(1));
    assert_eq!(lab.bash_as(0, 1000, &script), "proxy", "a resolver in IPv6");
    assert_eq!(lab.bash_as(0, 1337, &script), "other");
}

fn skipped_without_ipv6() -> bool {
    if !link::has_ipv6() {
        eprintln!("SKIPPED (needs IPv6 in the kernel)");
    }
    !link::has_ipv6()
}

/// Claims an address for the own link, from the own address: an advertisement that overrides what is known.
fn advertise(from: Ipv6Addr, claimed: Ipv6Addr, to: Ipv6Addr) {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(socket2::Protocol::ICMPV6))
            .unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.set_unicast_hops_v6(255).unwrap();
    // Type 136, override (RFC 4861 section 4.4); the kernel fills in the checksum.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(claimed.octets());
    message.extend([2, 1, 2, 0, 10, 244, 1, 99]);
    socket.send_to(&message, &SocketAddr::from((to, 0)).into()).unwrap();
}

fn ipv6() {
    if skipped_without_ipv6() {
        return;
    }
    let lab = Lab::new(3);
    let receiver = lab.pods[1].pod.run(|| UdpSocket::bind("[::]:5000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let send = |from: Ipv6Addr| {
        lab.pods[0].pod.run(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"hello", (pod6(1), 5000)).unwrap();
        })
    };
    let mut buffer = [0; 16];
    send(pod6(0)).unwrap();
    assert_eq!(receiver.recv_from(&mut buffer).unwrap().1.ip(), pod6(0));
    let ip = |args: &[&str]| {
        let output = Command::new("ip").args(["-n", lab.pods[0].pod.name()]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!ip(&["-6", "addr", "show", "dev", "eth0"]).contains("fe80"), "no link-local address");

    ip(&["addr", "add", &format!("{}/64", pod6(2)), "dev", "eth0", "nodad"]);
    send(pod6(2)).unwrap();
    receiver.recv_from(&mut buffer).expect_err("another IP address is dropped");
    ip(&["addr", "del", &format!("{}/64", pod6(2)), "dev", "eth0"]);

    // The second Pod knows where the third one is, and hears of no other place from the first.
    serve(lab.pods[2].pod.run(|| TcpListener::bind("[::]:80").unwrap()).unwrap(), "third");
    lab.connect(1, SocketAddr::from((pod6(2), 80))).unwrap();
    lab.pods[0].pod.run(|| advertise(pod6(0), pod6(2), pod6(1))).unwrap();
    send(pod6(0)).unwrap();
    receiver.recv_from(&mut buffer).expect("behind the advertisement");
    let known = Command::new("ip")
        .args(["-n", lab.pods[1].pod.name(), "-6", "neigh", "show", &pod6(2).to_string()])
        .output();
    let known = String::from_utf8(known.unwrap().stdout).unwrap();
    assert!(known.contains(&lab.pods[2].mac()), "{known}");

    // The way out, and what is never outside.
    let outside: Ipv6Addr = "2001:db8::7".parse().unwrap();
    egress::install(&lab.node, &own_networks(), Some(WAY_OUT)).unwrap();
    let listener = lab.node.run(|| TcpListener::bind((GATEWAY6, WAY_OUT)).unwrap()).unwrap();
    let target = SocketAddr::from((outside, 443));
    let _client = lab.connect(1, target).unwrap();
    let (accepted, from) = listener.accept().unwrap();
    assert_eq!((original_dst(&accepted).unwrap(), from.ip()), (Some(target), pod6(1).into()));
    for refused in [
        SocketAddr::from((GATEWAY6, WAY_OUT)),
        SocketAddr::from((GATEWAY6, 6443)),
        "[fd00:ec2::254]:80".parse().unwrap(),
    ] {
        let error = lab.connect(1, refused).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    }
}

fn redirect6() {
    if skipped_without_ipv6() {
        return;
    }
    let lab = Lab::new(2);
    let pod = &lab.pods[0].pod;
    pod.run(|| intercept::apply::<&str>(&[])).unwrap().unwrap();
    let listen = |of: usize, port: u16| {
        let bind = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
            socket.set_only_v6(true).unwrap();
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
            socket.listen(16).unwrap();
            TcpListener::from(socket)
        };
        lab.pods[of].pod.run(bind).unwrap()
    };
    serve_original(listen(0, 15001));
    serve_original(listen(0, 15006));
    serve(listen(0, 8080), "local");
    serve(listen(1, 8080), "other");
    let at = |pod: u16, port: u16| SocketAddr::from((pod6(pod), port));
    assert_eq!(lab.fetch_as(0, 1000, at(1, 8080)), "08080", "IC-1: the application goes to 15001");
    assert_eq!(lab.fetch_as(0, 1337, at(1, 8080)), "other", "IC-5");
    assert_eq!(lab.fetch_as(1, 1000, at(0, 8080)), "08080", "inbound goes to 15006");
    assert_eq!(lab.fetch_as(0, 1000, at(0, 8080)), "local", "IC-3");

    let networks = ["10.96.0.0/16", "fd00:10:96::/112"].map(|net| net.parse().unwrap());
    let port = |endpoints| VirtualPort { address: VIP6.into(), ..virtual_port(endpoints) };
    service::apply(pod, &networks, &[port(vec![(pod6(1).into(), 8080)])]).unwrap();
    let vip = SocketAddr::from((VIP6, 80));
    assert_eq!(lab.fetch_as(0, 1000, vip), "00080", "the application's goes to the sidecar");
    assert_eq!(lab.fetch_as(0, 1337, vip), "other", "the sidecar's is translated");
    service::apply(pod, &networks, &[port(vec![])]).unwrap();
    assert!(lab.fetch_as(0, 1337, vip).contains("refused"), "without endpoints it is refused");

    // IC-8: what the proxy delivers comes from ::6, which the loopback has, and is not captured again.
    let text = pod.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::from([0, 0, 0, 0, 0, 0, 0, 6]), 0)).into()).unwrap();
        socket.connect(&at(0, 8080).into()).unwrap();
        let mut text = String::new();
        TcpStream::from(socket).read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(text.unwrap(), "local");
}

fn idempotent() {
    let lab = Lab::new(1);
    let pod = &lab.pods[0].pod;
    let apply = |args: &[&str]| {
        pod.run(|| intercept::apply(args)).unwrap().unwrap();
        nft::list(pod).unwrap()
    };
    let args =
        ["-i", "10.0.0.0/8,fd00::/8", "-x", "", "-q", "443", "-b", "80,443", "-c", "dummy0", "-k", "tap0"];
    let first = apply(&args);
    assert!(first.contains("fd00::/8") && first.contains("tap0"), "{first}");
    assert_eq!(apply(&args), first);
    assert_ne!(apply(&["-x", "10.5.0.0/16"]), first);
    pod.run(intercept::remove).unwrap().unwrap();
    assert!(!nft::list(pod).unwrap().contains("maille_intercept"));
}

fn admin() {
    let lab = Lab::new(1);
    let pod = &lab.pods[0].pod;
    pod.run(|| intercept::apply::<&str>(&[])).unwrap().unwrap();
    serve(pod.run(|| TcpListener::bind("127.0.0.1:15000").unwrap()).unwrap(), "admin");
    let at: SocketAddr = "127.0.0.1:15000".parse().unwrap();
    assert_eq!(lab.fetch_as(0, 1337, at), "admin");
    assert_eq!(lab.fetch_as(0, 0, at), "admin");
    let refused = lab.fetch_as(0, 1000, at);
    assert!(refused.contains("refused"), "{refused}");
}

fn proxy_to_vip() {
    let lab = Lab::new(2);
    let pod = &lab.pods[0].pod;
    let network = ["10.96.0.0/16".parse().unwrap()];
    // The order in which the two tables came must not matter.
    service::apply(pod, &network, &[virtual_port(vec![(lab.pods[1].address.into(), 8080)])]).unwrap();
    pod.run(|| intercept::apply::<&str>(&[])).unwrap().unwrap();
    serve_original(lab.listen(0, 15001));
    serve(lab.listen(1, 8080), "other");
    let vip = SocketAddr::from((VIP, 80));
    assert_eq!(lab.fetch_as(0, 1000, vip), "00080", "the application's goes to the sidecar");
    assert_eq!(lab.fetch_as(0, 1337, vip), "other", "the sidecar's is translated");
    service::apply(pod, &network, &[virtual_port(vec![(lab.pods[1].address.into(), 8080)])]).unwrap();
    assert_eq!(lab.fetch_as(0, 1000, vip), "00080");
}
