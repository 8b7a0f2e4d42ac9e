//! Clients of others: PyPI's `spiffe` and the crate of that name.

use tokio::process::Command;

use super::*;

/// The folder of Python libraries that `cargo xtask setup` makes.
fn libraries() -> Option<PathBuf> {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/xds-protos-1.85.0");
    let named = std::env::var_os("MAILLE_PYTHON_LIBRARIES").map(PathBuf::from);
    let found = [named, Some(tools)].into_iter().flatten().find(|folder| folder.join("spiffe").is_dir());
    if found.is_none() {
        let help = "cargo xtask setup";
        assert!(std::env::var_os("CI").is_none(), "Python's spiffe was not found: {help}");
        eprintln!("SKIPPED (needs Python's spiffe): {help}");
    }
    found
}

/// Fetches everything there is, waits for a rotation and for another bundle, and says what it saw.
const CLIENT: &str = r#"
import sys, json
from spiffe import WorkloadApiClient, X509Source, JwtSource, TrustDomain
import threading

client = WorkloadApiClient()
svid = client.fetch_x509_svid()
print("svid", svid.spiffe_id, len(svid.cert_chain))
bundles = client.fetch_x509_bundles()
own = bundles.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
print("roots", len(own.x509_authorities))
token = client.fetch_jwt_svid(audience={"orders", "cart"})
print("token", token.spiffe_id, sorted(token.audience))
good = client.validate_jwt_svid(token.token, audience="orders")
print("good", good.spiffe_id)
keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("cluster.local"))
print("keys", len(keys.jwt_authorities))
from spiffe import JwtSvid
checked = JwtSvid.parse_and_validate(token.token, keys, {"cart"})
print("checked", checked.spiffe_id)
try:
    client.validate_jwt_svid(token.token, audience="others")
    print("refused no")
except Exception as e:
    print("refused yes")

with X509Source() as source:
    first = source.svid.cert_chain[0].serial_number
    changed = threading.Event()
    source.subscribe_for_updates(changed.set)
    print("watching", flush=True)
    rotated = federated = False
    while not (rotated and federated):
        if not changed.wait(20):
            sys.exit("nothing changed")
        changed.clear()
        rotated = source.svid.cert_chain[0].serial_number != first
        federated = source.get_bundle_for_trust_domain(TrustDomain("other.example")) is not None
    print("rotated", source.svid.spiffe_id)
"#;

#[tokio::test]
async fn pythons_client_fetches_watches_and_validates() {
    let Some(libraries) = libraries() else { return };
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(8));
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut first = client(&lab).await;
    drop(eventually_jwt_bundles(&mut first).await);
    let child = Command::new("python3")
        .args(["-c", CLIENT])
        .env("PYTHONPATH", libraries)
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", lab.socket().display()))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 starts");
    // Once it has asked for tokens there is another trust domain.
    let trust = async {
        while lab.script.jwt.minted.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lab.set_trust(Some(&authority_of("other.example")));
        std::future::pending::<()>().await;
    };
    let output = tokio::select! {
        output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()) => output.expect("in time"),
        () = trust => unreachable!("it never ends"),
    };
    let output = output.expect("run");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    let id = identity("cart").uri();
    let expected = format!(
        "svid {id} 1\nroots 1\ntoken {id} ['cart', 'orders']\ngood {id}\nkeys 1\nchecked {id}\nrefused yes\nwatching\nrotated {id}\n"
    );
    assert_eq!(said, expected, "{errors}");
}

#[tokio::test]
async fn the_crate_spiffe_fetches_watches_and_validates() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(4));
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut first = client(&lab).await;
    drop(eventually_jwt_bundles(&mut first).await);
    let endpoint = format!("unix://{}", lab.socket().display());
    let source = within(spiffe::X509Source::builder().endpoint(&endpoint).build()).await.expect("a source");
    let svid = source.svid().expect("an SVID");
    assert_eq!(svid.spiffe_id().to_string(), identity("cart").uri());
    let domain = |name: &str| spiffe::TrustDomain::new(name).expect("valid");
    let authorities =
        |name: &str| source.try_bundle_for_trust_domain(&domain(name)).map(|b| b.authorities().len());
    assert_eq!((authorities("cluster.local"), authorities("other.example")), (Some(1), None));
    lab.set_trust(Some(&authority_of("other.example")));
    eventually("it is told of another trust domain", || authorities("other.example") == Some(1)).await;
    eventually("and of a renewal", || {
        source.try_svid().is_some_and(|now| now.cert_chain()[0].as_bytes() != svid.cert_chain()[0].as_bytes())
    })
    .await;

    let tokens = within(spiffe::JwtSource::builder().endpoint(&endpoint).build()).await.expect("a source");
    let token = within(tokens.fetch_jwt_svid(["orders"])).await.expect("a token");
    assert_eq!(token.spiffe_id().to_string(), identity("cart").uri());
    spiffe::JwtSvid::parse_and_validate(token.token(), &tokens, &["orders"]).expect("good");
    spiffe::JwtSvid::parse_and_validate(token.token(), &tokens, &["others"]).expect_err("for others");
    drop(agent);
}
