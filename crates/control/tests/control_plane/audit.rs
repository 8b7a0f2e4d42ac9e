//! What the authority writes down.

use std::os::unix::fs::PermissionsExt as _;

use maille_control::{AuditEntry, AuditLog, AuditOptions};
use maille_pki::{create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use serde_json::Value;
use tonic::Code;

use crate::lab::{CART, Lab, NOBODY, WEB, identity};

fn request() -> IstioCertificateRequest {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "web")).expect("csr");
    IstioCertificateRequest { csr, validity_duration: 600, ..Default::default() }
}

fn logging(file: &std::path::Path, required: bool) -> AuditLog {
    AuditLog::open(AuditOptions { file: Some(file.to_owned()), required }).expect("opens")
}

fn lines(file: &std::path::Path) -> Vec<AuditEntry> {
    let text = std::fs::read_to_string(file).expect("the log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[tokio::test]
async fn each_certificate_and_each_refusal_is_a_line_of_the_file() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("issued.jsonl");
    let lab = Lab::with(|control| control.audit = logging(&file, false).into()).await;
    let signer = lab.control.authority.load_full().expect("one").signer().to_owned();
    let svid = lab.svid(WEB, "shop:web").await;
    lab.sign(CART, Some("shop:web"), request()).await.expect_err("another pod's");
    lab.sign(NOBODY, None, request()).await.expect_err("nobody");
    let broken = IstioCertificateRequest { csr: "no CSR".into(), ..Default::default() };
    lab.sign(WEB, Some("shop:web"), broken).await.expect_err("no CSR");

    let mode = std::fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let lines = lines(&file);
    let [issued, other, nothing, broken] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(issued.event, "issued");
    assert_eq!(issued.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert_eq!((issued.pod.as_deref(), issued.address.as_str()), (Some("shop/web-1"), WEB));
    assert_eq!(issued.serial.as_deref(), Some(svid.serial()));
    assert_eq!(issued.signer.as_deref(), Some(signer.as_str()));
    assert_eq!((issued.proof.as_deref(), issued.ttl_s), (Some("token"), Some(86_399)));
    assert_eq!(issued.not_after.as_ref().map(String::len), Some("2026-01-01T00:00:00Z".len()));
    assert_eq!((other.event.as_str(), other.address.as_str()), ("refused", CART));
    assert!(other.reason.as_deref().is_some_and(|reason| reason.contains("shop/cart-1")), "{other:?}");
    assert!(nothing.reason.as_deref().is_some_and(|reason| reason.contains("neither")), "{nothing:?}");
    assert_eq!(broken.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert!(broken.reason.as_deref().is_some_and(|reason| reason.contains("CSR")), "{broken:?}");

    // The same from the monitoring port, the newest first.
    let ask = async |query: &str| {
        let (status, body) = lab.http(&format!("/ca/issued{query}")).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).expect("JSON")
    };
    let all = ask("").await;
    let shown: Vec<AuditEntry> = serde_json::from_value(all["issued"].clone()).expect("entries");
    assert_eq!(shown, lines.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!((&all["log"]["issued"], &all["log"]["refused"]), (&Value::from(1), &Value::from(3)));
    assert_eq!(all["log"]["file"], file.to_str().expect("text"));
    let count = |answer: Value| answer["issued"].as_array().map(Vec::len);
    assert_eq!(count(ask("?limit=2").await), Some(2));
    assert_eq!(count(ask("?identity=spiffe://cluster.local/ns/shop/sa/web").await), Some(2));
    assert_eq!(count(ask("?identity=spiffe://cluster.local/ns/shop/sa/cart").await), Some(0));
    assert_eq!(count(ask("?since=2999-01-01T00:00:00Z").await), Some(0));
    assert_eq!(count(ask("?since=2020-01-01T00:00:00Z").await), Some(4));
    for wrong in ["?since=yesterday", "?limit=many", "?nonsense=1"] {
        assert_eq!(lab.http(&format!("/ca/issued{wrong}")).await.0, 400, "{wrong}");
    }

    // A successor appends.
    drop(logging(&file, false));
    lab.svid(CART, "shop:cart").await;
    assert_eq!(self::lines(&file).len(), 5);
}

/// /dev/full takes nothing, as a full disk.
#[tokio::test]
async fn a_full_disk_stops_issuing_only_where_the_log_is_required() {
    let full = std::path::Path::new("/dev/full");
    let lab = Lab::with(|control| control.audit = logging(full, false).into()).await;
    lab.sign(WEB, Some("shop:web"), request()).await.expect("issued all the same");
    let (_, answer) = lab.http("/ca/issued").await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert!(answer["log"]["problem"].as_str().is_some_and(|problem| problem.contains("space")), "{answer}");
    assert_eq!(answer["log"]["lost"], 1);

    let lab = Lab::with(|control| control.audit = logging(full, true).into()).await;
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("not without the log");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("audit log"), "{status}");
}

#[test]
fn a_required_log_that_cannot_be_opened_is_an_error() {
    let nowhere = std::path::PathBuf::from("/nonexistent/issued.jsonl");
    let open = |file, required| AuditLog::open(AuditOptions { file, required });
    let error = open(Some(nowhere.clone()), true).expect_err("required").to_string();
    assert!(error.contains("/nonexistent/issued.jsonl"), "{error}");
    assert!(open(None, true).expect_err("no file").to_string().contains("CA_AUDIT_LOG"));
    let log = open(Some(nowhere), false).expect("reported");
    assert!(log.state().problem.is_some());
}
