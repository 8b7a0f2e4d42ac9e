//! What proxies report, and who may read it.

use maille_control::world::{Change, Event};
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{Decision, Flow, FlowReport, Peer, Protocol, Reporter};

use crate::lab::{CART, Lab, WEB, pod};

#[tokio::test]
async fn a_report_is_attributed_to_its_reporter_and_addresses_become_workloads() {
    let lab = Lab::new().await;
    let svid = lab.svid(CART, "shop:cart").await;
    let channel = lab.channel(CART, Some(&svid)).await.expect("connects");
    let flow = Flow {
        reporter: Reporter::Destination.into(),
        source: Some(Peer { address: WEB.into(), ..Default::default() }),
        // A lie about who reports.
        destination: Some(Peer {
            workload_name: "payment".into(),
            principal: "cluster.local/ns/shop/sa/payment".into(),
            service: "cart.shop.svc.cluster.local".into(),
            ..Default::default()
        }),
        port: 8080,
        protocol: Protocol::Http.into(),
        mtls: false,
        decision: Decision::Denied.into(),
        policy: "shop/deny".into(),
        reason: "DENY rule 0 matched".into(),
        requests: 3,
        ..Default::default()
    };
    let reports = tokio_stream::iter([FlowReport { flows: vec![flow], state: None }]);
    let summary = FlowsClient::new(channel).report(reports).await.expect("taken").into_inner();
    assert_eq!(summary.received, 1);
    let (status, body) = lab.http("/flows?denied&plaintext=true&since=5m&to=shop/cart").await;
    assert_eq!(status, 200);
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let flow = &answer["flows"][0];
    assert_eq!(flow["source"]["workloadName"], "web");
    assert_eq!(flow["source"]["uid"], "shop/web-1");
    assert_eq!(flow["destination"]["workloadName"], "cart");
    assert_eq!(flow["destination"]["principal"], "cluster.local/ns/shop/sa/cart");
    assert_eq!(flow["destination"]["service"], "cart.shop.svc.cluster.local");
    assert_eq!((flow["requests"].as_u64(), flow["decision"].as_str()), (Some(3), Some("DENIED")));
    let (_, body) = lab.http("/flows?from=nobody").await;
    assert_eq!(body, r#"{"flows":[]}"#);
    assert_eq!(lab.http("/flows?since=soon").await.0, 400);
}

#[tokio::test]
async fn reports_need_a_certificate() {
    let lab = Lab::new().await;
    let channel = lab.channel(CART, None).await.expect("connects");
    let status = FlowsClient::new(channel).report(tokio_stream::iter([])).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn health_and_metrics_are_public_and_flows_are_not_for_workloads() {
    let lab = Lab::new().await;
    assert_eq!(lab.http("/healthz").await.0, 200);
    assert_eq!(lab.http("/ready").await.0, 503);
    lab.ready.set();
    assert_eq!(lab.http("/ready").await.0, 200);
    lab.svid(WEB, "shop:web").await;
    let (_, metrics) = lab.http("/metrics").await;
    assert!(metrics.contains("\ncitadel_server_success_cert_issuance_count 1\n"), "{metrics}");
    assert!(metrics.contains("\npilot_services 1\n"), "{metrics}");
    // The test itself calls from 127.0.0.1: let that be a workload's address.
    lab.apply(Event::Pod(Change::Put(pod("snoop", "snoop", "127.0.0.1"))));
    assert_eq!(lab.http("/flows").await.0, 403);
    assert_eq!(lab.http("/proxies").await.0, 403);
    assert_eq!(lab.http("/metrics").await.0, 200);
}
