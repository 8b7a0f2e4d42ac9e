//! The application's questions, answered from the facts of the control plane.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use maille_proto::facts as wire;
use maille_xds::type_urls;
use tokio::net::UdpSocket;

use super::{Lab, shared, start};

/// An answer's code and addresses; nothing if there is none.
async fn ask(at: SocketAddr, name: &str) -> Option<(ResponseCode, Vec<IpAddr>)> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(at).await.expect("connected");
    socket.send(&query.to_vec().expect("bytes")).await.expect("sent");
    let mut buffer = vec![0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await;
    let answer = Message::from_vec(&buffer[..received.ok()?.ok()?]).expect("an answer");
    let addresses = answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    Some((answer.metadata.response_code, addresses))
}

#[tokio::test]
async fn an_allocated_address_is_told_changed_and_still_told_without_the_control_plane() {
    let mut lab = Lab::new().await;
    let entry = |address: &str| {
        let service = wire::Service {
            hostname: "db1.corp".into(),
            namespace: "shop".into(),
            name: "db1".into(),
            addresses: vec![address.into()],
            service_entry: "shop/db1".into(),
            external: true,
            ..Default::default()
        };
        wire::Destination { kind: Some(wire::destination::Kind::Service(service)) }
    };
    lab.script.set(type_urls::DESTINATION, "db1.corp", &entry("240.240.0.1"));
    let free = UdpSocket::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let mut options = lab.options();
    (options.dns, options.resolv_conf) = (Some(free), lab.file("resolv.conf"));
    std::fs::write(&options.resolv_conf, "search shop.svc.cluster.local\n").expect("written");
    let (agent, telemetry) = start(options);
    shared(&agent).await;

    let expect = |address: &'static str| async move {
        let expected = (ResponseCode::NoError, vec![address.parse::<IpAddr>().expect("an address")]);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let told = ask(free, "db1.corp.").await;
            if told.as_ref() == Some(&expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{told:?} in place of {address}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    expect("240.240.0.1").await;
    lab.script.set(type_urls::DESTINATION, "db1.corp", &entry("240.240.0.2"));
    expect("240.240.0.2").await;
    lab.control = None;
    expect("240.240.0.2").await;
    let unknown = ask(free, "db2.corp.").await.expect("an answer");
    assert_eq!(unknown, (ResponseCode::ServFail, Vec::new()), "nobody can say whether it is the mesh's");
    let metrics = telemetry.render_prometheus();
    assert!(metrics.contains("\nistio_agent_dns_requests_total "), "{metrics}");
}
